"""One published version of a policy's weights: how they lie in memory, and the frozen view that hooks get."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from state.module_tensors import named_tensors
from state.policy_point import PolicyPoint
from state.shared_memory import BufferView, SharedBuffer

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's place in a snapshot: `offset` in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int


@dataclass(frozen=True, slots=True)
class PolicyLayout:
    """Where each parameter and buffer of a module lies in a snapshot of `nbytes` bytes.

    Trainable parameters come first, `learned_count` of them, grouped by dtype, so that each group is one contiguous
    vector: `trainable` holds (dtype, begin, end) in bytes.
    """

    tensors: tuple[TensorSpec, ...]
    learned_count: int
    trainable: tuple[tuple[str, int, int], ...]
    nbytes: int

    @property
    def learned(self) -> tuple[TensorSpec, ...]:
        """Those that were trainable when the layout was made."""
        return self.tensors[: self.learned_count]

    @property
    def learned_nbytes(self) -> int:
        """Bytes at the beginning that hold them."""
        return self.trainable[-1][2] if self.trainable else 0

    @classmethod
    def of(cls, module: nn.Module) -> PolicyLayout:
        """The layout for `module`; raises TypeError for a dtype that numpy, or a file of safetensors, does not know."""
        specs: list[TensorSpec] = []
        trainable: list[tuple[str, int, int]] = []
        end = 0
        parameters = list(module.named_parameters())
        learned = sorted((p for p in parameters if p[1].requires_grad), key=lambda p: str(p[1].dtype))
        rest = [p for p in parameters if not p[1].requires_grad] + list(module.named_buffers())
        for index, (name, tensor) in enumerate([*learned, *rest]):
            dtype = str(tensor.dtype).removeprefix("torch.")
            if np.dtype(getattr(np, dtype, np.void)).kind not in "biuf":
                raise TypeError(
                    f"{name!r} has dtype {dtype}, which a snapshot cannot hold; keep the policy's parameters in "
                    "float32 (use autocast for reduced precision), and its buffers in floats of 16, 32 or 64 bits, "
                    "integers or bool"
                )
            specs.append(TensorSpec(name, tuple(tensor.shape), dtype, end))
            begin, end = end, end + -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
            if index < len(learned):
                if trainable and trainable[-1][0] == dtype:
                    begin = trainable.pop()[1]
                trainable.append((dtype, begin, end))
        return cls(tuple(specs), len(learned), tuple(trainable), end)

    def arrays(self, memory: Any) -> dict[str, NDArray[Any]]:
        """One array per tensor over a slot's `memory`; writable exactly if the memory is."""
        return {
            spec.name: np.frombuffer(
                memory, dtype=np.dtype(spec.dtype), count=math.prod(spec.shape), offset=spec.offset
            ).reshape(spec.shape)
            for spec in self.tensors
        }


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PolicySnapshot:
    """A policy version, read-only: the very bytes that the collectors act with.

    `version` counts publications (0 is the policy before training); `factory` builds the module it belongs to.
    Two are equal when they are of the same version and hold the same tensors, bit for bit. `copy.deepcopy` gives one in
    memory of its own.
    """

    version: int
    layout: PolicyLayout
    factory: Callable[[], nn.Module]
    memory: BufferView
    minibatches: int = 0
    """Of the epoch after the version that it has learned from besides; 0 for all that hooks see."""

    @property
    def point(self) -> PolicyPoint:
        """When in the course of learning it was published."""
        return PolicyPoint(self.version, self.minibatches)

    def __repr__(self) -> str:
        layout = self.layout
        return f"<PolicySnapshot of version {self.point}: {len(layout.tensors)} tensors, {layout.nbytes} bytes>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PolicySnapshot):
            return NotImplemented
        same = (self.point, self.layout) == (other.point, other.layout)
        return same and self.memory.holds_the_same(other.memory, self.layout.nbytes)

    def __hash__(self) -> int:
        return hash((self.point, self.layout))

    @property
    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """Parameters and buffers by name, as read-only arrays over memory that is mapped again for each call; they keep
        the slot from being reused."""
        return self.layout.arrays(self.memory.readonly())

    @property
    def buffer(self) -> SharedBuffer:
        """The memory itself, to pass to a worker, which can only read it; valid while this snapshot is held."""
        return self.memory.buffer

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all parameters and buffers: the caller's own."""
        return {name: torch.from_numpy(array.copy()) for name, array in self.tensors.items()}

    def load(self, module: nn.Module | None = None) -> nn.Module:
        """A module with these weights: `module`, or a new one. Computes on the caller's thread.

        Raises ValueError listing the differing tensors where `module` does not fit.
        """
        module = self.factory() if module is None else module
        load_arrays(module, self.tensors)
        return module


def load_arrays(module: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy named arrays into a module's parameters and buffers, in place; ValueError lists what does not fit.

    (Not quite in place for a buffer that was reassigned in inference mode, since nothing may write to that.)
    """
    own = named_tensors(module)
    problems = [f"{name}: missing" for name in own if name not in arrays]
    problems += [f"{name}: unknown" for name in arrays if name not in own]
    problems += [
        f"{name}: {list(arrays[name].shape)} given, {list(tensor.shape)} needed"
        for name, tensor in own.items()
        if name in arrays and arrays[name].shape != tuple(tensor.shape)
    ]
    if problems:
        raise ValueError("the weights do not fit the policy: " + "; ".join(problems))
    with torch.no_grad():
        for name, tensor in own.items():
            value = torch.from_numpy(arrays[name].copy())
            if tensor.is_inference():
                path, _, key = name.rpartition(".")
                setattr(module.get_submodule(path), key, value.to(tensor.dtype))
            else:
                tensor.copy_(value)
