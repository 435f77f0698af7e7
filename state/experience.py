"""What was experienced in one epoch: the fields' specification, their layout in a slot, and the frozen view of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from state.error import OrchestratorError
from state.policy_point import PolicyPoint
from state.shared_memory import BufferView

_ALIGNMENT = 64  # bytes: a cache line


class ExperienceSpecError(OrchestratorError, ValueError):
    """Two parties want the same field with different shapes or dtypes."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field: `[segments, horizon, *shape]`, or `[segments, *shape]` where `per` is "segment"."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    per: Literal["step", "segment"] = "step"


@dataclass(frozen=True, slots=True)
class ExperienceSpec:
    """The fields of a slot of `segments` x `horizon` agent steps and where each begins (bytes)."""

    segments: int
    horizon: int
    fields: tuple[FieldSpec, ...]
    offsets: tuple[int, ...] = field(init=False)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        offsets: list[int] = []
        end = 0
        for spec in self.fields:
            offsets.append(end)
            size = math.prod(self.array_shape(spec)) * np.dtype(spec.dtype).itemsize
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        object.__setattr__(self, "offsets", tuple(offsets))
        object.__setattr__(self, "nbytes", end)

    @classmethod
    def merge(cls, segments: int, horizon: int, groups: Mapping[str, Iterable[FieldSpec]]) -> ExperienceSpec:
        """Merge what each party (the key names it in errors) asks for; equal requests are one field.

        Raises ExperienceSpecError naming every clash.
        """
        owners: dict[str, tuple[str, FieldSpec]] = {}
        problems: list[str] = []
        for owner, specs in groups.items():
            for spec in specs:
                first_owner, first = owners.setdefault(spec.name, (owner, spec))
                if first != spec:
                    problems.append(
                        f"field {spec.name!r}: {first_owner} wants {_describe(first)}, {owner} wants {_describe(spec)}"
                    )
        if problems:
            raise ExperienceSpecError("the experience's fields clash; rename one of each pair: " + "; ".join(problems))
        return cls(segments, horizon, tuple(spec for _, spec in owners.values()))

    @property
    def agent_steps(self) -> int:
        return self.segments * self.horizon

    def array_shape(self, spec: FieldSpec) -> tuple[int, ...]:
        leading = (self.segments, self.horizon) if spec.per == "step" else (self.segments,)
        return leading + spec.shape

    def arrays(self, memory: Any) -> dict[str, NDArray[Any]]:
        """One array per field over a slot's `memory`; writable exactly if the memory is."""
        return {spec.name: self._array(memory, index) for index, spec in enumerate(self.fields)}

    def array(self, memory: Any, name: str) -> NDArray[Any]:
        """The array of the one field `name`; KeyError lists the fields there are."""
        for index, spec in enumerate(self.fields):
            if spec.name == name:
                return self._array(memory, index)
        raise KeyError(f"no field {name!r} in the experience; there are {[spec.name for spec in self.fields]}")

    def _array(self, memory: Any, index: int) -> NDArray[Any]:
        spec = self.fields[index]
        shape = self.array_shape(spec)
        flat = np.frombuffer(memory, dtype=np.dtype(spec.dtype), count=math.prod(shape), offset=self.offsets[index])
        return flat.reshape(shape)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Experience(Mapping[str, NDArray[Any]]):
    """One epoch's experience, read-only: `experience["reward"]` is `[segments, horizon]`.

    The arrays are views of shared memory, made on access; they and this object keep the slot from being reused. Each
    access maps the memory again (15 us), so that nothing done to an array, by whatever way, shows in another.

    Two are equal when they are of the same epoch and policy version, with the same fields, and hold the same bytes.
    `copy.deepcopy` gives one in separate memory, which keeps no slot.
    """

    spec: ExperienceSpec
    epoch: int
    policy_version: int
    memory: BufferView
    policy_minibatches: int = 0
    """Of the epoch after that version, which the policy that acted had learned from besides."""
    cells: range = range(1)
    """Which cells' it is, of `of_cells`: on several machines, each has only what was collected there."""
    of_cells: int = 1

    @property
    def segments(self) -> int:
        """How many are here: with all cells', those of the spec."""
        return len(self.cells) * (self.spec.segments // self.of_cells)

    @property
    def policy_point(self) -> PolicyPoint:
        """When in the course of learning the policy that acted was published."""
        return PolicyPoint(self.policy_version, self.policy_minibatches)

    def __repr__(self) -> str:
        size = f"{self.segments} x {self.spec.horizon}"
        return f"<Experience of epoch {self.epoch}, policy version {self.policy_point}: {size}, {', '.join(self)}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Experience):
            return NotImplemented
        mine, theirs = ((one.epoch, one.policy_point, one.spec, one.cells, one.of_cells) for one in (self, other))
        return mine == theirs and self.memory.holds_the_same(other.memory, self.spec.nbytes)

    def __hash__(self) -> int:
        return hash((self.epoch, self.policy_point, self.spec))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._here(self.spec.array(self.memory.readonly(), name))

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self.spec.fields)

    def __len__(self) -> int:
        return len(self.spec.fields)

    def tensor(self, name: str) -> torch.Tensor:
        """The field as a torch tensor without a copy; the caller's own: writing to it changes it for no one else."""
        return torch.from_numpy(self._here(self.spec.array(self.memory.private(), name)))

    def _here(self, array: NDArray[Any]) -> NDArray[Any]:
        of_each = self.spec.segments // self.of_cells
        return array[self.cells.start * of_each : self.cells.stop * of_each]


def _describe(spec: FieldSpec) -> str:
    return f"{spec.dtype}{list(spec.shape)} per {spec.per}"
