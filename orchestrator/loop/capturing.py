"""Captures what checkpoints need while the loop goes on: finds out which epochs will be saved, and takes their state at
the only moments at which it is known."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.loop.crew import MOMENTS
from orchestrator.snapshots.training_capture import TrainingCapture
from state.shared_memory import SlotRing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.hooks.engine import HookEngine
    from orchestrator.learning.learner_state import LearnerState
    from orchestrator.loop.control import RunControl
    from orchestrator.loop.crew import Crew
    from orchestrator.loop.policy_versions import PolicyVersions
    from orchestrator.snapshots.training_capture import Captures
    from state.shared_memory import Slot
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator")


@dataclass(frozen=True, slots=True)
class Saving:
    """A checkpoint that is due at the end of an epoch; decided when the epoch has been collected, because where the
    collectors stand then can't be known later."""

    hooks: frozenset[str]
    collectors: tuple[Mapping[str, Any] | None, ...]


class Capturing:
    """For each checkpoint: `plan` once its epoch has been collected, `claim_moments` before it is learned from, and
    `keep` after it. Where nothing is under way, `capture` does all of it."""

    def __init__(
        self, crew: Crew, engine: HookEngine, control: RunControl, versions: PolicyVersions, captures: Captures
    ) -> None:
        self._crew = crew
        self._engine = engine
        self._control = control
        self._versions = versions
        self._captures = captures
        # As many as hooks can have in hand and waiting, beside the last one that was saved and the one being captured.
        self._moments = SlotRing(crew.description.moments_nbytes, max_leased=engine.most_being_saved + 2, name=MOMENTS)
        self._oldest_versions: dict[int, int] = {}
        """By epoch of which a checkpoint will be taken, the oldest version that it must hold."""

    async def plan(self, state: TrainerState) -> Saving | None:
        """Whether a checkpoint is due when the counters are as in `state`."""
        if not self._engine.saving:
            return None
        hooks = self._engine.saves_due(state, requested=self._control.take_checkpoint_request())
        if not hooks:
            return None
        self._oldest_versions[state.epoch] = self._versions.of_epoch(state.epoch)
        return Saving(hooks, await self._crew.capture_collectors())

    def oldest_version(self, otherwise: int) -> int:
        """The oldest version that checkpoints to come must hold, or `otherwise` where that is older."""
        return min([otherwise, *self._oldest_versions.values()])

    def claim_moments(self) -> Slot:
        """Memory for the optimizer's moments."""
        self._captures.forget_all_but(self._engine.epochs_being_saved())
        return self._moments.claim()

    def release_moments(self, moments: Slot) -> None:
        self._moments.release(moments)

    def keep(
        self, epoch: int, learner: LearnerState, moments: Slot, collectors: tuple[Mapping[str, Any] | None, ...]
    ) -> None:
        """An epoch can be saved: its moments are in a claimed slot, which is given back here."""
        needed = range(self._oldest_versions.pop(epoch, self._versions.of_epoch(epoch)), epoch)
        lease = self._moments.lease(moments)
        self._moments.release(moments)
        if lease is None:
            _log.warning(
                "epoch %d can't be resumed from: hooks that save hold too much that they have not saved", epoch
            )
            return
        behaviour = [version for version in needed if version in self._versions]
        capture = TrainingCapture(
            learner=learner,
            moments=lease,
            behaviour=tuple(self._versions.view_or_copy(version) for version in behaviour),
            collectors=collectors,
            learning_rate_scale=self._control.learning_rate_scale,
        )
        self._captures.keep(epoch, capture)

    async def capture(self, epoch: int, *, finished: bool) -> None:
        """Plan and keep at once, while nobody is at work: an epoch after which the run ends or is paused. Where every
        rollout was `finished` and learned from, the collectors stand at the next epoch; otherwise their episodes are
        lost."""
        if not self._engine.saving or (not finished and self._captures.get(epoch) is not None):
            return  # what was planned before the next rollout was cut short knows its episodes
        moments = self.claim_moments()
        learner = await self._crew.capture_learner(moments)
        # Where a rollout was cut short its collector may hang.
        collectors = await self._crew.capture_collectors() if finished else (None,) * self._crew.collectors
        self.keep(epoch, learner, moments, collectors)
