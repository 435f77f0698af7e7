"""The hot loop as the host sees it: a collect task and a learn task, joined by slots of experience and by published
policy versions."""

from __future__ import annotations

import itertools
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio

from orchestrator.collection.episodes import merged_in_time
from orchestrator.loop.beginning import begin, resume_from
from orchestrator.loop.hidden_collection import HiddenCollection
from orchestrator.loop.patience import WorkerHangs
from orchestrator.loop.policy_versions import PolicyVersions
from orchestrator.loop.rings import EXPERIENCE, POLICY
from orchestrator.loop.snapshots import SnapshotTaker
from orchestrator.loop.statistics import LoopStatistics
from orchestrator.loop.views import Views
from orchestrator.loop.worker_group import EarlyPublication
from orchestrator.tracing.timeline import Timeline
from orchestrator.workers.reply import WorkerCrashed
from state.frozen_mapping import FrozenMapping
from state.policy_point import PolicyPoint
from state.shared_memory import Slot, SlotRing
from state.stats_tracker import StatsTracker
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from orchestrator.collection.collector import CollectReport
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.hooks.engine import HookEngine
    from orchestrator.learning.messages import EarlyReport, LearnReport
    from orchestrator.loop.control import RunControl
    from orchestrator.loop.newest_state import NewestState
    from orchestrator.loop.snapshots import SnapshotPlan
    from orchestrator.loop.worker_group import WorkerGroup
    from orchestrator.snapshots.checkpoint_files import ResumePoint
    from orchestrator.snapshots.initial_weights import Weights
    from orchestrator.snapshots.training_snapshot import TrainingSnapshots
    from orchestrator.tracing.trace import Trace
    from state.stopwatch import Stopwatch

_log = logging.getLogger("orchestrator")


@dataclass(frozen=True, slots=True)
class _Batch:
    """A slot full of experience on its way to the learner."""

    epoch: int
    slot: Slot
    behavior: PolicyPoint
    before: TrainerState
    """When the rollout started."""
    state: TrainerState
    """When it had ended."""
    snapshot: SnapshotPlan | None
    """If one is to be taken at the end of this epoch."""


class TrainingLoop:
    """Runs epochs until the agent steps are reached or the run is stopped; then those that have begun are finished.

    Epoch k is collected with a policy that is exactly `staleness` epochs of learning older than version k, so that the
    result depends on the seed and not on how the machine schedules.
    """

    def __init__(
        self,
        config: TrainerConfig,
        workers: WorkerGroup,
        engine: HookEngine,
        control: RunControl,
        stopwatch: Stopwatch,
        newest: NewestState,
        snapshots: TrainingSnapshots,
        staleness_fixed: Callable[[float], Awaitable[None]],
        resume: ResumePoint | None = None,
        trace: Trace | None = None,
        weights: Weights | None = None,
    ) -> None:
        self._config = config
        self._workers = workers
        self._engine = engine
        self._control = control
        self._stopwatch = stopwatch
        self._newest = newest
        self._timeline = Timeline(stopwatch, trace)
        self._resume = resume
        self._weights = weights
        self._experience = SlotRing(workers.spec.nbytes, max_leased=config.collection.held_epochs, name=EXPERIENCE)
        self._versions = PolicyVersions(
            workers.description.layout,
            workers.policy_factory,
            staleness=config.staleness,
            minibatches=config.minibatches_per_epoch,
            max_leased=config.collection.held_epochs,
        )
        held = config.collection.held_epochs
        machines = 1 if config.cluster is None else config.cells
        self._views = Views(workers.spec, self._experience, self._versions, engine, newest, held, machines)
        self._snapshots = SnapshotTaker(workers, engine, control, self._versions, snapshots)
        self._hidden = HiddenCollection(config.minibatches_per_epoch)
        self._staleness_fixed = staleness_fixed
        self._tracker = StatsTracker()
        """Of the collected epochs; those that are learned from come later."""
        self._collected_steps = 0
        self._first_epoch = self._collected_epochs = 0 if resume is None else resume.state.epoch
        self._rollout_cut = False
        self._failure: Exception | None = None
        """What the collection has failed with."""

    def statistics(self) -> LoopStatistics:
        """What workers and slots are doing."""
        rings = {EXPERIENCE: self._experience.statistics(), POLICY: self._versions.statistics()}
        return LoopStatistics(workers=self._workers.statistics(), slots=FrozenMapping(rings))

    async def run(self) -> None:
        """All epochs."""
        await self._begin()
        # No batch is collected before the version it needs is there, which bounds how many wait.
        send, receive = anyio.create_memory_object_stream[_Batch](self._config.versions_behind + 1)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._collect, send, name="collect")
                tasks.start_soon(self._learn, receive, name="learn")
        except Exception:
            # The learner is gone, or amid an epoch: the policy that it has published last is what can be saved.
            if self._newest.state.epoch > self._first_epoch:
                self._snapshots.deliver(self._newest.advance(policy=self._views.policy_for_sure()))
            raise
        self._timeline.end()
        await self._end()

    async def _begin(self) -> None:
        """on_new_training_run, once everyone is where the run begins."""
        if self._resume is None:
            await begin(self._workers, self._versions, self._weights)
            self._weights = None
            state = self._newest.state
        else:
            await resume_from(self._workers, self._versions, self._snapshots, self._config, self._resume)
            self._control.scale_learning_rate(self._resume.learning_rate_scale)
            state = self._resume.state
            self._collected_steps = state.agent_step
            self._tracker = state.stats_tracker or self._tracker
        for point in self._versions:
            self._timeline.published(point)
        state = self._newest.advance(
            state,
            policy=self._views.policy(self._versions.newest.version),
            stats_tracker=self._tracker,
            timer=self._stopwatch.reading(),
        )
        await self._workers.callback("on_new_training_run", state)
        if "on_new_training_run" in self._workers.description.callbacks:  # a loss may have changed the policy
            await self._workers.publish(self._versions.slot(self._versions.newest))
        await self._workers.protect_learner(state.epoch, lambda: self._versions.slot(self._versions.newest))
        await self._engine.publish("on_new_training_run", state)

    async def _end(self) -> None:
        """The last epoch can be saved, and is where the run has failed. Raises what the collection has failed with."""
        epoch = self._newest.state.epoch
        if epoch:
            finished = self._collected_epochs == epoch and not self._rollout_cut
            # Where one hangs or has died, the last checkpoint has the policy, and cannot be resumed from.
            with suppress(WorkerHangs, WorkerCrashed):
                await self._snapshots.take(epoch, finished=finished)
        state = self._newest.advance(policy=self._views.policy_for_sure())
        if self._failure is not None:
            if epoch > self._first_epoch:
                self._snapshots.deliver(state)
            raise self._failure

    # The collect task.

    async def _collect(self, send: MemoryObjectSendStream[_Batch]) -> None:
        try:
            async with send:
                await self._collect_epochs(send)
        except WorkerHangs:
            self._rollout_cut = True

    async def _collect_epochs(self, send: MemoryObjectSendStream[_Batch]) -> None:
        """on_rollout_start, a rollout, on_rollout_end: until there are enough steps, or the run or learning stops."""
        lane = self._timeline.collecting
        for epoch in itertools.count(self._newest.state.epoch):
            lane.now("wait")
            behavior = await self._policy_for(epoch)
            if behavior is None or not await self._may_begin():
                return
            lane.now("host")
            before = self._rollout_start(epoch, behavior.version)
            if not self._config.versions_behind:  # otherwise the busy learner hears of it when it begins with the batch
                await self._workers.callback("on_rollout_start", before)
            lane.now("hooks")
            await self._engine.publish("on_rollout_start", before)
            lane.now("host")
            slot = self._experience.claim()
            lane.now("work")
            reports = await self._roll_out(epoch, behavior, slot)
            if reports is None:
                return
            state = self._rollout_end(before, behavior, slot, reports)
            snapshot = await self._snapshots.plan(state)
            # Here and below, the task that continues the training is woken before the hooks, so that it runs first.
            try:
                send.send_nowait(_Batch(epoch, slot, behavior, before, state, snapshot))
            except anyio.BrokenResourceError:  # the learn task has stopped
                return
            lane.now("hooks")
            await self._engine.publish("on_rollout_end", state)

    async def _policy_for(self, epoch: int) -> PolicyPoint | None:
        """What an epoch is collected with, once it is published; None when the run has enough steps, or stops first."""
        if self._collected_steps >= self._config.total_agent_steps:
            return None
        while not self._versions.knows(epoch) or self._versions.of_epoch(epoch) not in self._versions:
            if self._control.stopping:
                return None
            await self._newest.news()
        return self._versions.of_epoch(epoch)

    async def _may_begin(self) -> bool:
        """Wait while the run is paused, and save where that is asked for meanwhile; False when no epoch is to begin."""
        control = self._control

        def saves() -> bool:
            return control.checkpoint_requested and self._collected_epochs > 0

        while True:
            await control.wait_until(lambda: control.stopping or not control.paused or saves())
            if control.stopping or not control.paused:
                return not control.stopping
            while self._newest.state.epoch < self._collected_epochs and not control.stopping:
                await self._newest.news()
            if not control.stopping:
                control.take_checkpoint_request()
                await self._snapshots.take(self._newest.state.epoch, finished=True)
                self._snapshots.deliver(self._newest.derive(policy=self._views.policy_for_sure()))

    def _rollout_start(self, epoch: int, version: int) -> TrainerState:
        before = replace(self._newest.state, epoch=epoch, agent_step=self._collected_steps, policy_version=version)
        return (
            self._newest.derive(before, timer=self._stopwatch.reading())
            if self._is_heard("on_rollout_start")
            else before
        )

    async def _roll_out(self, epoch: int, behavior: PolicyPoint, slot: Slot) -> tuple[CollectReport, ...] | None:
        """One rollout into the slot; None where it was cut short, or has failed."""
        try:
            reports = await self._workers.collect(slot, self._versions.slot(behavior))
        except WorkerHangs:
            raise
        except Exception as error:  # what has been collected is still learned from, and saved
            self._failure = error
            self._rollout_cut = True
            return None
        self._hidden.collected(self._timeline.collected(epoch, behavior, reports))
        self._versions.forget(self._snapshots.oldest_policy(self._versions.of_epoch(epoch + 1)))
        if any(report.interrupted for report in reports):
            self._rollout_cut = True
            return None
        return reports

    def _rollout_end(
        self, before: TrainerState, behavior: PolicyPoint, slot: Slot, reports: Sequence[CollectReport]
    ) -> TrainerState:
        """The state after a rollout, which is counted here."""
        steps = sum(report.agent_steps for report in reports)
        self._collected_epochs = before.epoch + 1
        self._collected_steps += steps
        self._tracker = self._tracker.with_rollout(merged_in_time([report.rollout_stats for report in reports]), steps)
        return self._newest.derive(
            epoch=before.epoch,
            agent_step=self._collected_steps,
            policy_version=before.policy_version,
            rollout_stats=self._tracker.rollout,
            experience=self._views.experience(before.epoch, behavior, slot),
            stats_tracker=self._tracker,
            timer=self._stopwatch.reading() if self._is_heard("on_rollout_end") else None,
        )

    # The learn task.

    async def _learn(self, receive: MemoryObjectReceiveStream[_Batch]) -> None:
        try:
            async with receive:
                while batch := await self._next_batch(receive):
                    if self._control.stop_requested == "now" or not await self._learn_from(batch):
                        return
        except WorkerHangs:
            return
        finally:
            self._newest.wake()  # the collect task may wait for a version that does not come

    async def _next_batch(self, receive: MemoryObjectReceiveStream[_Batch]) -> _Batch | None:
        """None where no more is collected."""
        self._timeline.learning.now("wait")
        with suppress(anyio.EndOfStream):
            try:
                return receive.receive_nowait()
            except anyio.WouldBlock:
                return await receive.receive()
        return None

    async def _learn_from(self, batch: _Batch) -> bool:
        """An epoch of learning, on_train_phase_end, on_epoch_end; False where it was interrupted."""
        lane = self._timeline.learning
        lane.now("host")
        if not self._versions.knows(batch.epoch + 1):
            await self._fix_staleness()
        version, snapshot = batch.epoch + 1, batch.snapshot
        publish_to = self._versions.claim()
        early = self._versions.early_point(batch.epoch)
        moments = None if snapshot is None else self._snapshots.claim_moments()
        known = self._known_to_losses(batch.state)
        lane.now("work")
        report = await self._workers.learn(
            known,
            batch.slot,
            batch.behavior,
            publish_to,
            version,
            steps_before=batch.before.agent_step,
            rollout_start=batch.before if self._config.versions_behind else None,
            learning_rate_scale=self._control.learning_rate_scale,
            moments_to=moments,
            early=early and EarlyPublication(early, self._versions.claim(), self._published_early),
        )
        # As the learner has measured it: without messages, and without what losses do at the end of the epoch.
        self._timeline.learned(batch.epoch, version, report)
        self._hidden.learned(report.ended - report.began)
        self._experience.release(batch.slot)
        self._versions.add(PolicyPoint(version), publish_to)
        phase_end = self._phase_end(known, version, report)
        state = self._epoch_end(phase_end, report, keep_policy=snapshot is not None)
        lane.now("hooks")
        await self._engine.publish("on_train_phase_end", phase_end)
        if snapshot is not None and report.learner_state is not None and moments is not None:
            # Only now: what no hook is known to need can be forgotten at every await.
            self._snapshots.keep(state.epoch, report.learner_state, moments, snapshot.collectors)
        await self._engine.publish("on_epoch_end", state, chosen=self._snapshots.chosen(snapshot))
        return not report.interrupted

    async def _fix_staleness(self) -> None:
        """From now on, epochs are collected with a policy that is no older than hides the collection."""
        staleness = self._hidden.staleness()
        _log.info("staleness = %g: so much of an epoch's learning hides the collection of the next", staleness)
        await self._staleness_fixed(staleness)
        self._versions.fix(staleness)
        self._newest.wake()  # the collect task waits to know

    def _published_early(self, early: EarlyPublication, report: EarlyReport) -> None:
        self._timeline.published_early(early.point, report)
        self._versions.add(early.point, early.slot)
        self._newest.wake()  # the collect task may wait for it

    def _known_to_losses(self, state: TrainerState) -> TrainerState:
        if not self._workers.description.callbacks:
            return state
        # What losses are given must not depend on when things happened: the statistics are of the epoch before.
        newest = self._newest.state
        return self._newest.derive(state, loss_stats=newest.loss_stats, policy=newest.policy)

    def _phase_end(self, known: TrainerState, version: int, report: LearnReport) -> TrainerState:
        state = replace(known, update_epoch=report.update_epochs, mb_idx=report.minibatches, policy_version=version)
        if not self._engine.listens("on_train_phase_end"):
            return state
        newest = self._newest.state
        return self._newest.derive(
            state, loss_stats=newest.loss_stats, policy=newest.policy, timer=self._stopwatch.reading()
        )

    def _epoch_end(self, phase_end: TrainerState, report: LearnReport, *, keep_policy: bool) -> TrainerState:
        """The epoch has been learned from: its state is the newest from now on, for the collect task first of all."""
        version, epoch = phase_end.policy_version, phase_end.epoch
        self._stopwatch.rate("agent_step", phase_end.agent_step - self._newest.state.agent_step)
        return self._newest.advance(
            phase_end,
            epoch=epoch + 1,
            loss_stats=FrozenMapping(report.loss_stats),
            policy=self._versions.view_or_copy(PolicyPoint(version)) if keep_policy else self._views.policy(version),
            timer=self._timeline.lap(epoch),
        )

    # What both need.

    def _is_heard(self, event: str) -> bool:
        """Whether anyone looks at the states of `event`, so that all of it must be known."""
        return bool(self._workers.description.callbacks) or self._engine.listens(event)
