"""The hot loop as the host sees it: a collect task and a learn task, joined by slots of experience and by published
policy versions."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio

from orchestrator.crew import EXPERIENCE, POLICY
from orchestrator.timeline import Timeline
from state.experience import Experience
from state.frozen_mapping import FrozenMapping
from state.policy_snapshot import PolicySnapshot
from state.shared_memory import BufferView, SharedBuffer, Slot, SlotRing
from state.stats_tracker import StatsTracker
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from orchestrator.collector import CollectReport
    from orchestrator.config import TrainerConfig
    from orchestrator.control import RunControl
    from orchestrator.crew import Crew
    from orchestrator.hooks.engine import HookEngine
    from orchestrator.trace import Trace
    from state.stopwatch import Stopwatch

_log = logging.getLogger("orchestrator")


@dataclass(frozen=True, slots=True)
class _Batch:
    """A slot full of experience on its way to the learner."""

    epoch: int
    slot: Slot
    behaviour_version: int
    before: TrainerState
    """When the rollout started."""
    state: TrainerState
    """When it had ended."""


class TrainingLoop:
    """Runs epochs until the agent steps are reached or the run is stopped; then those that have begun are finished.

    Epoch k is collected with policy version max(0, k - staleness) exactly, so that the result depends on the seed
    and not on how the machine schedules.
    """

    def __init__(
        self,
        config: TrainerConfig,
        crew: Crew,
        engine: HookEngine,
        control: RunControl,
        stopwatch: Stopwatch,
        on_state: Callable[[TrainerState], None],
        trace: Trace | None = None,
    ) -> None:
        self._config = config
        self._crew = crew
        self._engine = engine
        self._control = control
        self._stopwatch = stopwatch
        self._timeline = Timeline(stopwatch, trace)
        self._on_state = on_state
        self._experience = SlotRing(crew.spec.nbytes, max_leased=config.collection.held_epochs, name=EXPERIENCE)
        self._policies = SlotRing(crew.description.layout.nbytes, max_leased=config.collection.held_epochs, name=POLICY)
        self._versions: dict[int, Slot] = {}
        self._newest = anyio.Event()
        self._collected_steps = 0
        self._warned = False
        self.state = TrainerState()

    async def run(self) -> None:
        """All epochs. `self.state` is the newest state at any time, also after an error."""
        slot = self._policies.claim()
        await self._crew.publish(slot)
        self._versions[0] = slot
        self._timeline.published(0)
        self.state = self._engine.fold(
            replace(
                self.state, policy=self._view_policy(0), stats_tracker=StatsTracker(), timer=self._stopwatch.reading()
            )
        )
        await self._crew.callback("on_new_training_run", _without_views(self.state))
        await self._engine.publish("on_new_training_run", self.state)
        # No batch is collected before the version it needs is there, which bounds how many wait.
        send, receive = anyio.create_memory_object_stream[_Batch](self._config.staleness)
        watch = anyio.CancelScope()
        async with anyio.create_task_group() as outer:
            outer.start_soon(self._let_go_of_hooks, watch, name="watch for stop_now")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._collect, send, name="collect")
                tasks.start_soon(self._learn, receive, name="learn")
            watch.cancel()
        self._timeline.end()
        if self.state.policy is None:  # hooks hold so much that there was no view: the last state has its own
            self.state = replace(self.state, policy=self._copy_policy(self.state.policy_version))

    async def _let_go_of_hooks(self, scope: anyio.CancelScope) -> None:
        """A run that is to end now must not wait for a hook that holds it up."""
        with scope:
            await self._control.wait_until(lambda: self._control.stop_requested == "now")
            self._engine.unblock()

    # The collect task.

    async def _collect(self, send: MemoryObjectSendStream[_Batch]) -> None:
        config = self._config
        tracker = StatsTracker()
        lane = self._timeline.collecting
        async with send:
            for epoch in itertools.count():
                lane.now("wait")
                version = max(0, epoch - config.staleness)
                if self._collected_steps >= config.total_agent_steps or not await self._version_is_there(version):
                    return
                if not await self._control.may_begin():
                    return
                lane.now("host")
                before = replace(self.state, epoch=epoch, agent_step=self._collected_steps, policy_version=version)
                before = self._engine.fold(replace(before, timer=self._stopwatch.reading()))
                if config.staleness == 0:  # otherwise the learner is at work, and is told when it begins with the batch
                    await self._crew.callback("on_rollout_start", _without_views(before))
                lane.now("hooks")
                await self._engine.publish("on_rollout_start", before)
                lane.now("host")
                slot = self._experience.claim()
                lane.now("work")
                reports = await self._crew.collect(slot, self._versions[version])
                self._timeline.collected(epoch, version, reports)
                self._forget_versions(before=version + (1 if epoch >= config.staleness else 0))
                if any(report.interrupted for report in reports):
                    return
                self._collected_steps += sum(report.agent_steps for report in reports)
                stats = _merge(reports)
                tracker = tracker.with_rollout(stats, sum(report.agent_steps for report in reports))
                state = self._engine.fold(
                    replace(
                        self.state,
                        epoch=epoch,
                        agent_step=self._collected_steps,
                        policy_version=version,
                        rollout_stats=FrozenMapping({name: tuple(values) for name, values in stats.items()}),
                        experience=self._view_experience(epoch, version, slot),
                        stats_tracker=tracker,
                        timer=self._stopwatch.reading(),
                    )
                )
                lane.now("hooks")
                await self._engine.publish("on_rollout_end", state)
                lane.now("wait")
                try:
                    await send.send(_Batch(epoch, slot, version, before, state))
                except anyio.BrokenResourceError:  # the learn task has stopped
                    return

    async def _version_is_there(self, version: int) -> bool:
        """Wait for a published version; False when the run stops first."""
        while version not in self._versions:
            if self._control.stopping:
                return False
            await self._newest.wait()
        return True

    # The learn task.

    async def _learn(self, receive: MemoryObjectReceiveStream[_Batch]) -> None:
        try:
            async with receive:
                self._timeline.learning.now("wait")
                async for batch in receive:
                    if self._control.stop_requested == "now" or not await self._learn_from(batch):
                        return
                    self._timeline.learning.now("wait")
        finally:
            self._wake_collector()

    async def _learn_from(self, batch: _Batch) -> bool:
        lane = self._timeline.learning
        lane.now("host")
        version = batch.epoch + 1
        publish_to = self._policies.claim()
        # What losses are given must not depend on when things happened: the statistics are of the epoch before.
        known = replace(batch.state, loss_stats=self.state.loss_stats, policy=self.state.policy)
        message = _without_views(self._engine.fold(known))
        lane.now("work")
        report = await self._crew.learn(
            message,
            batch.slot,
            batch.behaviour_version,
            publish_to,
            version,
            steps_before=batch.before.agent_step,
            rollout_start=_without_views(batch.before) if self._config.staleness else None,
        )
        # As the learner has measured it: without messages, and without what losses do at the end of the epoch.
        self._timeline.learned(batch.epoch, version, report)
        self._experience.release(batch.slot)
        self._versions[version] = publish_to
        if report.interrupted:
            return False
        state = replace(
            known,
            update_epoch=report.update_epochs,
            mb_idx=report.minibatches,
            policy_version=version,
            timer=self._stopwatch.reading(),
        )
        lane.now("hooks")
        await self._engine.publish("on_train_phase_end", self._engine.fold(state))
        lane.now("host")
        self._stopwatch.rate("agent_step", batch.state.agent_step - self.state.agent_step)
        state = self._engine.fold(
            replace(
                state,
                epoch=batch.epoch + 1,
                loss_stats=FrozenMapping(report.loss_stats),
                policy=self._view_policy(version),
                timer=self._timeline.lap(batch.epoch),
            )
        )
        self.state = state
        self._wake_collector()
        self._on_state(state)
        lane.now("hooks")
        await self._engine.publish("on_epoch_end", state, save=self._control.take_checkpoint_request())
        return True

    def _wake_collector(self) -> None:
        self._newest.set()
        self._newest = anyio.Event()

    # What both need.

    def _forget_versions(self, before: int) -> None:
        """Release the versions that no further epoch is collected with, except the newest."""
        newest = max(self._versions)
        for version in [version for version in self._versions if version < min(before, newest)]:
            self._policies.release(self._versions.pop(version))

    def _view_experience(self, epoch: int, version: int, slot: Slot) -> Experience | None:
        lease = self._experience.lease(slot)
        if lease is None:
            self._warn_about_holders("experience")
            return None
        return Experience(self._crew.spec, epoch, version, lease)

    def _view_policy(self, version: int) -> PolicySnapshot | None:
        lease = self._policies.lease(self._versions[version])
        if lease is None:
            self._warn_about_holders("policy")
            return None
        return PolicySnapshot(version, self._crew.description.layout, self._crew.policy_factory, lease)

    def _copy_policy(self, version: int) -> PolicySnapshot:
        source = self._versions[version].buffer
        copy = SharedBuffer.create(source.nbytes, "final-policy")
        copy.map_shared()[:] = source.map_private()[:]
        return PolicySnapshot(version, self._crew.description.layout, self._crew.policy_factory, BufferView(copy))

    def _warn_about_holders(self, field: str) -> None:
        if not self._warned:
            holders = self._engine.holders()
            _log.warning(
                "views of %d epochs are held outside the loop, so states come with %s=None until some are dropped; %s",
                self._config.collection.held_epochs,
                field,
                f"hooks at work: {', '.join(holders)}" if holders else "no hook is at work, so something keeps states",
            )
        self._warned = True


def _merge(reports: Sequence[CollectReport]) -> dict[str, list[float]]:
    stats: dict[str, list[float]] = {}
    for report in reports:
        for name, values in report.rollout_stats.items():
            stats.setdefault(name, []).extend(values)
    return stats


def _without_views(state: TrainerState) -> TrainerState:
    """For the learner, who has the memory itself."""
    return replace(state, experience=None, policy=None)
