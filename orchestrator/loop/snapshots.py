"""Decides which epochs a training snapshot is taken of, and takes it at the only moments at which its parts are known,
while the loop continues."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.learning.learner_state import Unsaved
from orchestrator.loop.rings import MOMENTS
from orchestrator.snapshots.training_snapshot import TrainingSnapshot
from state.shared_memory import SlotRing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.hooks.engine import HookEngine
    from orchestrator.learning.learner_state import LearnerState
    from orchestrator.loop.control import RunControl
    from orchestrator.loop.policy_versions import PolicyVersions
    from orchestrator.loop.worker_group import WorkerGroup
    from orchestrator.snapshots.training_snapshot import TrainingSnapshots
    from state.policy_point import PolicyPoint
    from state.shared_memory import Slot
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator")


@dataclass(frozen=True, slots=True)
class SnapshotPlan:
    """A snapshot that is due at the end of an epoch; decided when the epoch has been collected, because where the
    collectors stand then can't be known later."""

    hooks: frozenset[str]
    """Names of those that are to save it."""
    collectors: tuple[Mapping[str, Any] | None, ...]


class SnapshotTaker:
    """For each snapshot: `plan` once its epoch has been collected, `claim_moments` before it is learned from, `keep`
    after it, and the end of the epoch goes to the hooks that are `chosen`. Where nothing is under way, `take` and
    `deliver`."""

    def __init__(
        self,
        workers: WorkerGroup,
        engine: HookEngine,
        control: RunControl,
        versions: PolicyVersions,
        snapshots: TrainingSnapshots,
    ) -> None:
        self._workers = workers
        self._engine = engine
        self._control = control
        self._versions = versions
        self._snapshots = snapshots
        savers = {name: hook for name, hook in engine.hooks.items() if hook.saves}
        self._savers = frozenset(savers)
        self._nobody = dict.fromkeys(savers, False)
        # Each can have so many unfinished: the one it handles, those that wait, and, where its `overflow` is "block",
        # the one that its sender waits with. Besides those, the last one that was saved and the one being taken.
        most = sum(hook.max_lag + 2 for hook in savers.values())
        self._moments = SlotRing(workers.description.moments_nbytes, max_leased=most + 2, name=MOMENTS)
        self._oldest: dict[int, PolicyPoint] = {}
        """By epoch of which a snapshot will be taken, the oldest policy that it must hold."""
        self._warned = False
        self._unsaved_epoch = 0

    async def plan(self, state: TrainerState) -> SnapshotPlan | None:
        """Whether a snapshot is due at the end of the epoch whose rollout `state` is the end of."""
        if not self._savers:
            return None
        state = replace(state, epoch=state.epoch + 1)
        hooks = self._engine.due("on_epoch_end", state, self._savers)
        if self._control.take_checkpoint_request():
            hooks = self._savers
        if not hooks:
            return None
        self._oldest[state.epoch] = self._versions.of_epoch(state.epoch)
        return SnapshotPlan(hooks, await self._collector_states())

    def chosen(self, plan: SnapshotPlan | None) -> Mapping[str, bool]:
        """Which of the hooks that save are given the end of the epoch."""
        return self._nobody if plan is None else {name: name in plan.hooks for name in self._savers}

    def oldest_policy(self, otherwise: PolicyPoint) -> PolicyPoint:
        """The oldest policy that snapshots to come must hold, or `otherwise` where that is older."""
        return min([otherwise, *self._oldest.values()])

    def claim_moments(self) -> Slot:
        """Memory for the optimizer's moments."""
        self._snapshots.keep_only(self._engine.epochs_in_hand(self._savers))
        return self._moments.claim()

    def release_moments(self, moments: Slot) -> None:
        self._moments.release(moments)

    def keep(
        self,
        epoch: int,
        learner: LearnerState | Unsaved,
        moments: Slot,
        collectors: tuple[Mapping[str, Any] | None, ...],
    ) -> None:
        """The parts of an epoch's snapshot are there: the moments in a claimed slot, which is given back here."""
        self._oldest.pop(epoch, None)
        if isinstance(learner, Unsaved):
            self._moments.release(moments)
            if epoch != self._unsaved_epoch:
                _log.error("epoch %d is saved as the policy alone, without what resumes it: %s", epoch, learner.reason)
            self._unsaved_epoch = epoch
            return
        lease = self._moments.lease(moments)
        self._moments.release(moments)
        if lease is None:
            _log.warning(
                "epoch %d can't be resumed from: hooks that save hold too much that they have not saved", epoch
            )
            return
        snapshot = TrainingSnapshot(
            learner=learner,
            moments=lease,
            behavior=tuple(self._versions.view_or_copy(point) for point in self._versions.needed_after(epoch)),
            collectors=collectors,
            learning_rate_scale=self._control.learning_rate_scale,
        )
        self._snapshots.keep(epoch, snapshot)

    async def take(self, epoch: int, *, finished: bool) -> None:
        """All at once, while nobody is at work: of an epoch after which the run ends or is paused. Where every rollout
        was `finished` and learned from, the collectors stand at the next epoch; otherwise their episodes are lost."""
        if not self._savers or (not finished and self._snapshots.get(epoch) is not None):
            return  # what was planned before the next rollout was cut short knows its episodes
        moments = self.claim_moments()
        learner = await self._workers.learner_state(moments)
        # Where a rollout was cut short its collector may hang.
        collectors = await self._collector_states() if finished else (None,) * self._workers.collectors
        self.keep(epoch, learner, moments, collectors)

    async def _collector_states(self) -> tuple[Mapping[str, Any] | None, ...]:
        states = await self._workers.collector_states()
        reason = next((state["uncaptured"] for state in states if state and state["uncaptured"]), None)
        if reason is not None and not self._warned:
            self._warned = True
            _log.warning(
                "not restored when this run is resumed: the environments, whose episodes will begin again, because %s; "
                "keep what they need in attributes of plain data (docs/checkpoints.md) to resume them exactly",
                reason,
            )
        return states

    def deliver(self, state: TrainerState) -> None:
        """Have all hooks that save take an epoch that has ended. Raises HookOverflow."""
        self._engine.deliver("on_epoch_end", state, self._savers)
