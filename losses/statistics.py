"""Running means of what losses report, kept on the device and read once per epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

_BLOCK = 32
"""Sums in one tensor."""


HostSums: TypeAlias = "Mapping[str, tuple[float, int]]"


@dataclass(slots=True)
class _Entry:
    device_sum: Tensor  # a view of one element of a block
    host_sum: float = 0.0
    count: int = 0


class LossStatistics:
    """Means by name over everything added since the last `read`.

    Tensors are summed where they are: adding one is a single small operation that waits for nothing. Numbers
    are summed on the host. `read` fetches all sums in one transfer.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device
        self._blocks = [self._new_block()]
        self._entries: dict[str, _Entry] = {}

    def __repr__(self) -> str:
        counts = {name: entry.count for name, entry in self._entries.items()}
        return f"LossStatistics(device={self._blocks[0].device}, counts={counts})"

    def add(self, name: str, value: Tensor | float) -> None:
        """Add one value (a number or a tensor of one element, whose gradient is ignored) to `name`'s mean.

        Raises `ValueError` for a tensor of more than one element, `TypeError` for what is no number.
        """
        entry = self._entries.get(name)
        if entry is None:
            entry = self._new_entry(name)
        if isinstance(value, Tensor):
            if value.dim() != 0:
                value = _scalar(name, value)
            if value.is_complex():
                raise _no_number(name, value)
            entry.device_sum.add_(value.detach() if value.requires_grad else value)
        else:
            entry.host_sum += value if type(value) is float or type(value) is int else _number(name, value)
        entry.count += 1

    def read(self) -> dict[str, float]:
        """The means of all names to which something was added since the last call; then starts from zero.

        This is the one place that waits for the device.
        """
        sums = self._blocks[0] if len(self._blocks) == 1 else torch.cat(self._blocks)
        device_sums: list[float] = sums.cpu().tolist()
        for block in self._blocks:
            block.zero_()
        means: dict[str, float] = {}
        for device_sum, (name, entry) in zip(device_sums, self._entries.items(), strict=False):
            if entry.count:
                means[name] = (device_sum + entry.host_sum) / entry.count
            entry.host_sum, entry.count = 0.0, 0
        return means

    # For a learner that has a device repeat what was added once.

    @property
    def tensors(self) -> list[Tensor]:
        """The sums on the device, which stay where they are."""
        return self._blocks

    def on_host(self) -> HostSums:
        """By name, what was added to the host's sum since the last `read`, and how often something was added."""
        return {name: (entry.host_sum, entry.count) for name, entry in self._entries.items()}

    def set_on_host(self, sums: HostSums) -> None:
        """Have the host know what it knew when `on_host` returned the `sums`, whatever was added since."""
        for name, entry in self._entries.items():
            entry.host_sum, entry.count = sums.get(name, (0.0, 0))

    def add_on_host(self, sums: HostSums) -> None:
        """Have the host know that as much was added again."""
        for name, (host_sum, count) in sums.items():
            entry = self._entries[name]
            entry.host_sum += host_sum
            entry.count += count

    def _new_block(self) -> Tensor:
        return torch.zeros(_BLOCK, dtype=torch.float32, device=self._device)

    def _new_entry(self, name: str) -> _Entry:
        if len(self._entries) == _BLOCK * len(self._blocks):
            self._blocks.append(self._new_block())
        entry = self._entries[name] = _Entry(self._blocks[-1][len(self._entries) % _BLOCK])
        return entry


def _number(name: str, value: object) -> float:
    """Numbers of other kinds, such as numpy's, also in an array; texts are none, whatever they say."""
    if not isinstance(value, (str, bytes, bytearray)):
        try:
            return float(value)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError):
            pass
    raise _no_number(name, value)


def _no_number(name: str, value: object) -> TypeError:
    return TypeError(
        f"the statistic {name!r} got {value!r} of type {type(value).__name__}: give a number, or a tensor of one"
    )


def _scalar(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ValueError(
            f"the statistic {name!r} got a tensor of shape {tuple(value.shape)}: give one number, such as its mean"
        )
    return value.reshape(())
