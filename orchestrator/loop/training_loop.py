"""The hot loop as the host sees it: a collect task and a learn task, joined by slots of experience and by published
policy versions."""

from __future__ import annotations

import itertools
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

import anyio

from orchestrator.hooks.wakeup import Wakeup
from orchestrator.loop.beginning import begin, go_on
from orchestrator.loop.capturing import Capturing
from orchestrator.loop.crew import EXPERIENCE
from orchestrator.loop.patience import WorkerHangs
from orchestrator.loop.policy_versions import PolicyVersions
from orchestrator.tracing.timeline import Timeline
from state.experience import Experience
from state.frozen_mapping import FrozenMapping
from state.shared_memory import Slot, SlotRing
from state.stats_tracker import StatsTracker
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from orchestrator.collection.collector import CollectReport
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.hooks.engine import HookEngine
    from orchestrator.loop.capturing import Saving
    from orchestrator.loop.control import RunControl
    from orchestrator.loop.crew import Crew
    from orchestrator.snapshots.initial_weights import Weights
    from orchestrator.snapshots.training_capture import Captures, ResumePoint
    from orchestrator.tracing.trace import Trace
    from state.policy_snapshot import PolicySnapshot
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
    saving: Saving | None
    """Where a checkpoint is to be taken at the end of this epoch."""


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
        captures: Captures,
        resume: ResumePoint | None = None,
        trace: Trace | None = None,
        weights: Weights | None = None,
    ) -> None:
        self._config = config
        self._crew = crew
        self._engine = engine
        self._control = control
        self._stopwatch = stopwatch
        self._timeline = Timeline(stopwatch, trace)
        self._on_state = on_state
        self._resume = resume
        self._weights = weights
        self._experience = SlotRing(crew.spec.nbytes, max_leased=config.collection.held_epochs, name=EXPERIENCE)
        self._versions = PolicyVersions(
            crew.description.layout,
            crew.policy_factory,
            staleness=config.staleness,
            max_leased=config.collection.held_epochs,
        )
        self._capturing = Capturing(crew, engine, control, self._versions, captures)
        self._newest = Wakeup()
        self._collected_steps = 0
        self._first_epoch = self._collected_epochs = 0 if resume is None else resume.state.epoch
        self._rollout_cut = False
        self._failure: Exception | None = None
        """What the collection has failed with."""
        self._warned = False
        self.state = TrainerState()

    async def run(self) -> None:
        """All epochs. `self.state` is the newest state at any time, also after an error."""
        if self._resume is None:
            await begin(self._crew, self._versions, self._weights)
            self._weights = None
            self._first_state(self.state, StatsTracker())
        else:
            resume = self._resume
            await go_on(self._crew, self._versions, self._capturing, self._config, resume)
            self._control.scale_learning_rate(resume.learning_rate_scale)
            self._collected_steps = resume.state.agent_step
            self._first_state(resume.state, resume.state.stats_tracker or StatsTracker())
        await self._crew.callback("on_new_training_run", self.state)
        if "on_new_training_run" in self._crew.description.callbacks:  # a loss may have changed the policy
            await self._crew.publish(self._versions.slot(self._versions.newest))
        await self._engine.publish("on_new_training_run", self.state)
        # No batch is collected before the version it needs is there, which bounds how many wait.
        send, receive = anyio.create_memory_object_stream[_Batch](self._config.staleness + 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._collect, send, name="collect")
            tasks.start_soon(self._learn, receive, name="learn")
        self._timeline.end()
        if self.state.epoch:
            finished = self._collected_epochs == self.state.epoch and not self._rollout_cut
            with suppress(WorkerHangs):  # then the last checkpoint has the policy, and cannot be resumed from
                await self._capturing.capture(self.state.epoch, finished=finished)
        if self.state.policy is None:  # hooks hold so much that there was no view: the last state has its own
            self.state = replace(self.state, policy=self._versions.copy(self.state.policy_version))
        if self._failure is not None:
            if self.state.epoch > self._first_epoch:
                self._engine.save(self._engine.fold(self.state))
            raise self._failure

    def _first_state(self, state: TrainerState, tracker: StatsTracker) -> None:
        for version in self._versions:
            self._timeline.published(version)
        self.state = self._engine.fold(
            replace(
                state,
                policy=self._view_policy(self._versions.newest),
                stats_tracker=tracker,
                timer=self._stopwatch.reading(),
            )
        )
        self._on_state(self.state)

    # The collect task.

    async def _collect(self, send: MemoryObjectSendStream[_Batch]) -> None:
        try:
            await self._collect_epochs(send)
        except WorkerHangs:
            self._rollout_cut = True

    async def _collect_epochs(self, send: MemoryObjectSendStream[_Batch]) -> None:
        config = self._config
        tracker = self.state.stats_tracker or StatsTracker()
        lane = self._timeline.collecting
        async with send:
            for epoch in itertools.count(self.state.epoch):
                lane.now("wait")
                version = self._versions.of_epoch(epoch)
                if self._collected_steps >= config.total_agent_steps or not await self._version_is_there(version):
                    return
                if not await self._may_begin():
                    return
                lane.now("host")
                before = replace(self.state, epoch=epoch, agent_step=self._collected_steps, policy_version=version)
                if self._is_heard("on_rollout_start"):
                    before = self._engine.fold(replace(before, timer=self._stopwatch.reading()))
                if config.staleness == 0:  # otherwise the learner is at work, and is told when it begins with the batch
                    await self._crew.callback("on_rollout_start", before)
                lane.now("hooks")
                await self._engine.publish("on_rollout_start", before)
                lane.now("host")
                slot = self._experience.claim()
                lane.now("work")
                try:
                    reports = await self._crew.collect(slot, self._versions.slot(version))
                except WorkerHangs:
                    raise
                except Exception as error:  # what has been collected is still learned from, and saved
                    self._failure = error
                    self._rollout_cut = True
                    return
                self._timeline.collected(epoch, version, reports)
                self._versions.forget(self._capturing.oldest_version(self._versions.of_epoch(epoch + 1)))
                if any(report.interrupted for report in reports):
                    self._rollout_cut = True
                    return
                self._collected_epochs = epoch + 1
                self._collected_steps += sum(report.agent_steps for report in reports)
                stats = _merge(reports)
                tracker = tracker.with_rollout(stats, sum(report.agent_steps for report in reports))
                state = self._engine.fold(
                    replace(
                        self.state,
                        epoch=epoch,
                        agent_step=self._collected_steps,
                        policy_version=version,
                        rollout_stats=tracker.rollout,
                        experience=self._view_experience(epoch, version, slot),
                        stats_tracker=tracker,
                        timer=self._stopwatch.reading() if self._is_heard("on_rollout_end") else None,
                    )
                )
                saving = await self._capturing.plan(replace(state, epoch=epoch + 1))
                # Here and below, who goes on with the training is woken before the hooks, so as to go first.
                try:
                    send.send_nowait(_Batch(epoch, slot, version, before, state, saving))
                except anyio.BrokenResourceError:  # the learn task has stopped
                    return
                lane.now("hooks")
                await self._engine.publish("on_rollout_end", state)

    async def _may_begin(self) -> bool:
        """Wait while the run is paused, and save where that is asked for meanwhile; False when no epoch is to begin."""
        control = self._control

        def saves() -> bool:
            return control.checkpoint_requested and self._collected_epochs > 0

        while True:
            await control.wait_until(lambda: control.stopping or not control.paused or saves())
            if control.stopping or not control.paused:
                return not control.stopping
            while self.state.epoch < self._collected_epochs and not control.stopping:
                await self._newest.wait()
            if not control.stopping:
                control.take_checkpoint_request()
                await self._capturing.capture(self.state.epoch, finished=True)
                policy = self.state.policy or self._versions.copy(self.state.policy_version)
                self._engine.save(self._engine.fold(replace(self.state, policy=policy)))

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
                while True:
                    self._timeline.learning.now("wait")
                    try:
                        batch = receive.receive_nowait()
                    except anyio.WouldBlock:
                        batch = await receive.receive()
                    if self._control.stop_requested == "now" or not await self._learn_from(batch):
                        return
        except (anyio.EndOfStream, WorkerHangs):
            return
        finally:
            self._wake_collector()

    async def _learn_from(self, batch: _Batch) -> bool:
        lane = self._timeline.learning
        lane.now("host")
        version = batch.epoch + 1
        publish_to = self._versions.claim()
        saving = batch.saving
        moments = None if saving is None else self._capturing.claim_moments()
        known = batch.state
        if self._crew.description.callbacks:
            # What losses are given must not depend on when things happened: the statistics are of the epoch before.
            known = replace(known, loss_stats=self.state.loss_stats, policy=self.state.policy)
            known = self._engine.fold(known)
        lane.now("work")
        report = await self._crew.learn(
            known,
            batch.slot,
            batch.behaviour_version,
            publish_to,
            version,
            steps_before=batch.before.agent_step,
            rollout_start=batch.before if self._config.staleness else None,
            learning_rate_scale=self._control.learning_rate_scale,
            capture_to=moments,
        )
        # As the learner has measured it: without messages, and without what losses do at the end of the epoch.
        self._timeline.learned(batch.epoch, version, report)
        self._experience.release(batch.slot)
        self._versions.add(version, publish_to)
        counters = {
            "update_epoch": report.update_epochs,
            "mb_idx": report.minibatches,
            "policy_version": version,
        }
        phase_end = known
        if self._engine.listens("on_train_phase_end"):
            phase_end = self._engine.fold(
                replace(
                    known,
                    loss_stats=self.state.loss_stats,
                    policy=self.state.policy,
                    timer=self._stopwatch.reading(),
                    **counters,
                )
            )
        self._stopwatch.rate("agent_step", batch.state.agent_step - self.state.agent_step)
        self.state = state = self._engine.fold(
            replace(
                known,
                epoch=batch.epoch + 1,
                loss_stats=FrozenMapping(report.loss_stats),
                policy=self._view_policy(version) if saving is None else self._versions.view_or_copy(version),
                timer=self._timeline.lap(batch.epoch),
                **counters,
            )
        )
        self._wake_collector()
        self._on_state(state)
        lane.now("hooks")
        await self._engine.publish("on_train_phase_end", phase_end)
        if saving is not None and report.captured is not None and moments is not None:
            # Only now: what no hook is known to need can be forgotten at every await.
            self._capturing.keep(state.epoch, report.captured, moments, saving.collectors)
        await self._engine.publish("on_epoch_end", state, save=frozenset() if saving is None else saving.hooks)
        return not report.interrupted

    def _wake_collector(self) -> None:
        self._newest.set()

    # What both need.

    def _is_heard(self, event: str) -> bool:
        """Whether anyone looks at the states of `event`, so that all of it must be known."""
        return bool(self._crew.description.callbacks) or self._engine.listens(event)

    def _view_experience(self, epoch: int, version: int, slot: Slot) -> Experience | None:
        lease = self._experience.lease(slot)
        if lease is None:
            self._warn_about_holders("experience")
            return None
        return Experience(self._crew.spec, epoch, version, lease)

    def _view_policy(self, version: int) -> PolicySnapshot | None:
        view = self._versions.view(version)
        if view is None:
            self._warn_about_holders("policy")
        return view

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
    """The statistics of all collectors, whose rollouts took place at the same time: each list in the order of time, as
    nearly as the places in the collectors' lists tell."""
    if len(reports) == 1:
        return reports[0].rollout_stats
    placed: dict[str, list[tuple[float, float]]] = {}
    for report in reports:
        for name, values in report.rollout_stats.items():
            places = ((index + 0.5) / len(values) for index in range(len(values)))
            placed.setdefault(name, []).extend(zip(places, values, strict=True))
    return {name: [value for _, value in sorted(values, key=itemgetter(0))] for name, values in placed.items()}
