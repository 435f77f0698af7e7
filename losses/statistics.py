"""Running means of what losses report, kept on the device and read once per epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST_CAPACITY = 32


@dataclass(slots=True)
class _Entry:
    device_sum: Tensor  # a view of one element of the buffer
    host_sum: float = 0.0
    count: int = 0


class LossStatistics:
    """Means by name over everything added since the last `read`.

    Tensors are summed where they are: adding one is a single small operation that waits for nothing. Numbers
    are summed on the host. `read` fetches all sums in one transfer.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._sums = torch.zeros(_FIRST_CAPACITY, dtype=torch.float32, device=device)
        self._entries: dict[str, _Entry] = {}

    def __repr__(self) -> str:
        counts = {name: entry.count for name, entry in self._entries.items()}
        return f"LossStatistics(device={self._sums.device}, counts={counts})"

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
        device_sums: list[float] = self._sums.cpu().tolist()
        self._sums.zero_()
        means: dict[str, float] = {}
        for device_sum, (name, entry) in zip(device_sums, self._entries.items(), strict=False):
            if entry.count:
                means[name] = (device_sum + entry.host_sum) / entry.count
            entry.host_sum, entry.count = 0.0, 0
        return means

    def _new_entry(self, name: str) -> _Entry:
        if len(self._entries) == len(self._sums):
            self._sums = torch.cat([self._sums, torch.zeros_like(self._sums)])
            for i, entry in enumerate(self._entries.values()):
                entry.device_sum = self._sums[i]
        entry = self._entries[name] = _Entry(self._sums[len(self._entries)])
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
