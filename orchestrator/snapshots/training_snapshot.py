"""What a run resumes from, in memory: taken at the end of an epoch, kept until its checkpoint is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.learning.learner_state import LearnerState
    from state.policy_snapshot import PolicySnapshot
    from state.shared_memory import BufferView


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSnapshot:
    """Everything that the epochs after one depend on, except for the policy that it published."""

    learner: LearnerState
    moments: BufferView
    """The optimizer's moments, in memory that is kept while this object lives."""
    behavior: tuple[PolicySnapshot, ...]
    """The older policies that the epochs after it act with; none without staleness."""
    collectors: tuple[Mapping[str, Any] | None, ...]
    """Where each collector stood at the beginning of the next epoch; None where that is not known."""
    learning_rate_scale: float


class TrainingSnapshots:
    """Those of a run whose checkpoints are yet to be written, by epoch. Each is much memory, so the loop drops those
    that nobody needs before it takes another."""

    def __init__(self) -> None:
        self._by_epoch: dict[int, TrainingSnapshot] = {}

    def keep(self, epoch: int, snapshot: TrainingSnapshot) -> None:
        self._by_epoch[epoch] = snapshot

    def get(self, epoch: int) -> TrainingSnapshot | None:
        return self._by_epoch.get(epoch)

    def keep_only(self, epochs: Collection[int]) -> None:
        for epoch in self._by_epoch.keys() - epochs:
            del self._by_epoch[epoch]
