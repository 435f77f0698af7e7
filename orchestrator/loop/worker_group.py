"""The workers of a run: starts collectors and learner, settles with them what the slots look like, asks them to work,
and replaces those that die."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from losses import Loss
from orchestrator.checks.configuration import check_minibatches, segment_reasons
from orchestrator.collection.collector import CollectReport
from orchestrator.collection.experience_fields import check_declared, experience_fields
from orchestrator.collection.plan import CollectorPlan
from orchestrator.collection.service import CollectorService, CollectRequest
from orchestrator.config.paths import PATH
from orchestrator.learning.learner import Learner
from orchestrator.learning.messages import EarlyReport, LearnerDescription, LearnerPlan, LearnReport, LearnRequest
from orchestrator.loop.cluster import cluster, losses_named
from orchestrator.loop.devices import acting_device, device_of_cell, resolve_device
from orchestrator.loop.learners import Learners
from orchestrator.loop.memory import memory_needed, out_of_memory_named
from orchestrator.loop.patience import WorkerHangs
from orchestrator.loop.restarts import Restarts
from orchestrator.loop.rings import EXPERIENCE, MOMENTS, POLICY
from orchestrator.policies import build_policy
from orchestrator.workers.cores import available_cores
from orchestrator.workers.event_loop import in_thread
from orchestrator.workers.note import Note
from orchestrator.workers.remote import MachineLost
from orchestrator.workers.slots import SlotSender
from orchestrator.workers.spans import on_clock
from orchestrator.workers.worker import Worker, WorkerCrashed, close_workers, open_worker
from state.experience import ExperienceSpec
from state.frozen_mapping import FrozenMapping
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from losses import LearnerCallback
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.learning.learner_state import LearnerState, Unsaved
    from orchestrator.loop.cluster import Cluster
    from orchestrator.loop.patience import Patience
    from orchestrator.policies import Policy, Spaces
    from orchestrator.workers.interrupt import Interrupt
    from orchestrator.workers.worker import WorkerStatistics
    from state.policy_point import PolicyPoint
    from state.shared_memory import Slot

_log = logging.getLogger("orchestrator")


@dataclass(slots=True)
class _Collector:
    index: int
    worker: Worker
    slots: SlotSender
    restarts: Restarts


@dataclass(frozen=True, slots=True)
class EarlyPublication:
    """The learner is to publish amid an epoch, too."""

    point: PolicyPoint
    slot: Slot
    published: Callable[[EarlyPublication, EarlyReport], None]
    """Called when the policy is there."""


class WorkerGroup:
    """The workers at work. Made by `worker_group()`."""

    def __init__(
        self, config: TrainerConfig, interrupt: Interrupt, patience: Patience, cluster: Cluster | None
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._interrupt = interrupt
        self._patience = patience
        self._opened: list[Worker] = []
        self._collectors: list[_Collector] = []
        self._learners: Learners
        self._warned: set[str] = set()
        self.spaces: Spaces
        self.agents: tuple[str, ...]
        """The names of the agents of one game."""
        self.recorded_spaces: Mapping[str, Any]
        self.spec: ExperienceSpec
        self.description: LearnerDescription

    @property
    def collectors(self) -> int:
        return len(self._collectors)

    @property
    def policy_factory(self) -> Callable[[], Policy]:
        """Builds a policy like the learner's; picklable."""
        config = self._config
        return partial(build_policy, config.policy, self.spaces, config.seed, config.learning.discount)

    async def assemble(self, losses: Sequence[LearnerCallback]) -> None:
        """Start all workers. Raises what their construction raises, such as InvalidEnvironment."""
        config = self._config
        count = config.collection.collectors
        workers: list[Any] = [None] * count
        hangs: list[WorkerHangs] = []

        async def start(index: int) -> None:
            try:
                workers[index] = await self._start_collector(index, 0)
            except WorkerHangs as error:
                hangs.append(error)

        async with anyio.create_task_group() as tasks:
            for index in range(count):
                tasks.start_soon(start, index)
        if hangs:
            raise hangs[0]
        self._collectors = [_Collector(index, worker, SlotSender(), Restarts()) for index, worker in enumerate(workers)]
        self.spaces = await self._ask(self._collectors[0].worker, "spaces")
        self.agents = await self._ask(self._collectors[0].worker, "agents")
        self.recorded_spaces = await self._ask(self._collectors[0].worker, "recorded_spaces")
        plan = LearnerPlan(
            config=config,
            losses=losses,
            spaces=self.spaces,
            device=resolve_device(config.device),
            max_threads=await in_thread(available_cores),  # which reads files
            interrupt=self._interrupt,
            agents=len(self.agents),
        )
        self._learners = Learners(
            config.cells,
            partial(self._open_learner, plan),
            self._ask,
            self._interrupt,
            can_die=config.collection.backend == "process",
            across_machines=self._cluster is not None,
        )
        self.description = await self._learners.start()
        recurrent = ["the policy is recurrent"] if self.description.recurrent_state_size else []
        reasons = segment_reasons(config, [one for one in losses if isinstance(one, Loss)])
        check_minibatches(config, reasons or recurrent, len(self.agents))
        size = config.collection.num_environments * len(self.agents), config.collection.horizon
        own = experience_fields(self.spaces, self.description.recurrent_state_size, refreshes=config.refreshes)
        check_declared(self.description.fields, own)
        self.spec = ExperienceSpec.merge(*size, {"the run": own, "the losses": self.description.fields})
        await self._prepare_learners()
        for collector in self._collectors:
            await self._ask(collector.worker, "prepare", self.spec)
        _log.info("%s", memory_needed(config, self.spec, self.description))

    async def _prepare_learners(self) -> None:
        compiles = self._config.learning.compile
        names = [worker.name for worker in self._learners.workers] if compiles else []
        for name in names:
            self._patience.waits_for[name] = lambda: "torch.compile"
        if compiles:
            what = f"what the learner computes of the policy ({PATH.learning.compile})"
            _log.info("torch compiles %s, for up to a minute or more", what)
        seconds = await self._learners.prepare(self.spec)
        for name in names:
            del self._patience.waits_for[name]
        if compiles:
            _log.info("compiled in %.1f s", seconds)

    async def publish(self, slot: Slot) -> None:
        """Have the learner copy its policy into `slot`."""
        await self._learners.ask("publish", lambda slots: (slots.ref(POLICY, slot),))

    async def callback(self, name: str, state: TrainerState) -> None:
        """Call one of the losses' callbacks, if any loss overrides it."""
        if name in self.description.callbacks:
            await self._learners.ask("callback", lambda _: (name, _for_losses(state)))

    async def collect(self, experience: Slot, policy: Slot) -> tuple[CollectReport, ...]:
        """One rollout of every collector. Raises WorkerCrashed when one keeps dying; of several errors, the first."""
        if len(self._collectors) == 1:
            return (await self._collect(self._collectors[0], experience, policy),)
        reports: list[Any] = [None] * len(self._collectors)
        errors: list[Exception] = []

        async def collect(collector: _Collector) -> None:
            try:
                reports[collector.index] = await self._collect(collector, experience, policy)
            except Exception as error:
                errors.append(error)
                if not isinstance(error, WorkerHangs):  # of which there may be more, each to be named
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for collector in self._collectors:
                tasks.start_soon(collect, collector)
        if errors:
            raise errors[0]
        return tuple(reports)

    async def learn(
        self,
        state: TrainerState,
        experience: Slot,
        behavior: PolicyPoint,
        publish_to: Slot,
        version: int,
        *,
        steps_before: int = 0,
        rollout_start: TrainerState | None = None,
        learning_rate_scale: float = 1.0,
        moments_to: Slot | None = None,
        early: EarlyPublication | None = None,
    ) -> LearnReport:
        """One epoch of learning; with `moments_to`, also what a snapshot of it needs.

        Raises WorkerCrashed when the learner keeps dying.
        """
        callbacks = self.description.callbacks

        def request(slots: SlotSender) -> LearnRequest:
            return LearnRequest(
                # Without callbacks nobody looks at more than the counters.
                state=_for_losses(state) if callbacks else TrainerState(epoch=state.epoch, agent_step=state.agent_step),
                experience=slots.ref(EXPERIENCE, experience),
                behavior=behavior,
                publish_to=slots.ref(POLICY, publish_to),
                version=version,
                steps_before=steps_before,
                rollout_start=_for_losses(rollout_start) if rollout_start and "on_rollout_start" in callbacks else None,
                learning_rate_scale=learning_rate_scale,
                moments_to=None if moments_to is None else slots.ref(MOMENTS, moments_to),
                early_minibatches=0 if early is None else early.point.minibatches,
                early_to=None if early is None else slots.ref(POLICY, early.slot),
            )

        def published_early(report: EarlyReport) -> None:
            assert early is not None
            early.published(early, report)

        learned = await self._learners.learn(request, published_early)
        reports: list[LearnReport] = []
        for worker, report in zip(self._learners.workers, learned, strict=True):
            self._warn(report.warnings)
            self._patience.saw(worker.name, report.longest_step)
            reports.append(on_clock(report, worker.clock_ahead))
        return reports[0]._replace(other_cells=reports[1:])

    async def protect_learner(self, epochs: int, policy: Callable[[], Slot]) -> None:
        """See `Learners.protect`."""
        await self._learners.protect(epochs, policy)

    # Snapshots.

    async def learner_state(self, moments: Slot) -> LearnerState | Unsaved:
        """The learner's state between two epochs; the moments go to a slot."""
        return await self._learners.ask("state", lambda slots: (slots.ref(MOMENTS, moments),))

    async def restore_learner(self, policy: Slot, moments: Slot | None, state: LearnerState | None) -> None:
        """Have the learner resume from what is in the slots. Raises what a loss raises for a state that is not its."""
        await self._learners.ask(
            "restore", lambda slots: (slots.ref(POLICY, policy), moments and slots.ref(MOMENTS, moments), state)
        )

    async def collector_states(self) -> tuple[Mapping[str, Any] | None, ...]:
        """Where each collector stands between two rollouts; None for one that has died, which its next rollout finds
        out."""
        states: list[Mapping[str, Any] | None] = []
        for collector in self._collectors:
            try:
                states.append(await self._ask(collector.worker, "state"))
            except WorkerCrashed:
                states.append(None)
        return tuple(states)

    async def restore_collectors(self, states: Sequence[Mapping[str, Any]]) -> str | None:
        """Have each collector resume from its state; returns why one of them begins new episodes, if one does."""
        reasons: list[str | None] = [
            await self._ask(collector.worker, "load_state", state)
            for collector, state in zip(self._collectors, states, strict=True)
        ]
        return next(filter(None, reasons), None)

    async def begin_new_episodes(self, rollouts: int) -> None:
        """Have all collectors begin new episodes, unlike those of the first `rollouts`."""
        for collector in self._collectors:
            await self._ask(collector.worker, "begin_new_episodes", rollouts)

    async def _collect(self, collector: _Collector, experience: Slot, policy: Slot) -> CollectReport:
        while True:
            request = CollectRequest(
                experience=collector.slots.ref(EXPERIENCE, experience), policy=collector.slots.ref(POLICY, policy)
            )
            try:
                report: CollectReport = await self._ask(collector.worker, "collect", request)
                self._warn(report.warnings)
                self._patience.saw(collector.worker.name, report.longest_step)
                return on_clock(report, collector.worker.clock_ahead)
            except WorkerCrashed as error:
                await self._replace(collector, error)

    async def _replace(self, collector: _Collector, error: WorkerCrashed) -> None:
        """Start another in the place of one that has died with `error`, or raise it."""
        while True:
            if not collector.restarts.died():
                raise WorkerCrashed(
                    f"{error}; it has died {collector.restarts.recent} times within an hour, and what it runs is"
                    f" the environment {self._config.environment!r}, with the policy"
                ) from error
            _log.warning("%s; %s: its episodes begin again", error, collector.restarts)
            await collector.worker.aclose(0)
            try:
                collector.worker = await self._start_collector(collector.index, collector.restarts.total)
                collector.slots = SlotSender()
                await self._ask(collector.worker, "prepare", self.spec)
            except WorkerCrashed as again:  # what has killed one may well kill the next
                error = again
            else:
                return

    def statistics(self) -> FrozenMapping[str, WorkerStatistics]:
        """Of each collector and the learner, by name."""
        workers = [(one.worker, one.restarts) for one in self._collectors]
        workers += [(worker, self._learners.restarts) for worker in self._learners.workers]
        found = [replace(worker.statistics(), restarts=restarts.total) for worker, restarts in workers]
        return FrozenMapping({one.name: one for one in found})

    def _warn(self, warnings: Mapping[str, str]) -> None:
        """Once about each thing, whichever collector says it first."""
        for about, text in warnings.items():
            if about not in self._warned:
                self._warned.add(about)
                _log.warning("%s", text)

    async def _start_collector(self, index: int, restarts: int) -> Worker:
        config, note, machines = self._config, Note(), self._cluster
        cell = index * config.cells // config.collection.collectors
        device = acting_device(config, cell, elsewhere=machines is not None and cell > 0)
        plan = CollectorPlan(config=config, index=index, restarts=restarts, device=device)
        self._patience.waits_for[plan.name] = note.read if machines is None else partial(machines.note, cell, note)
        return await self._open(plan.name, cell, CollectorService, lambda: (plan, self._interrupt, note))

    async def _open_learner(self, plan: LearnerPlan, cell: int) -> Worker:
        if self._config.cells == 1:
            return await self._open("learner", cell, Learner, lambda: (plan,))

        def of_cell() -> tuple[LearnerPlan]:
            device = device_of_cell(plan.device, cell, elsewhere=self._cluster is not None and cell > 0)
            address = plan.address if self._cluster is None else self._cluster.address_of(cell)
            return (replace(plan, cell=cell, device=device, address=address),)

        return await self._open(f"learner-{cell}", cell, Learner, of_cell)

    async def _open(self, name: str, cell: int, factory: Any, arguments: Callable[[], tuple[object, ...]]) -> Worker:
        with out_of_memory_named(self._config, name):
            worker = await self._patience.answer(name, "start", self._start, name, cell, factory, arguments)
        self._opened.append(worker)
        return worker

    async def _start(self, name: str, cell: int, factory: Any, arguments: Callable[[], tuple[object, ...]]) -> Worker:
        """A worker where its cell is; the arguments are asked for when that is known."""
        while True:
            machine = None if self._cluster is None else await self._cluster.machine(cell)
            try:
                return await open_worker(self._config.collection.backend, name, factory, *arguments(), machine=machine)
            except MachineLost as error:
                _log.warning("worker %r could not be started: %s", name, error)

    async def _ask(self, worker: Worker, method: str, *args: object) -> Any:
        with out_of_memory_named(self._config, worker.name), losses_named(self._cluster):
            return await self._patience.answer(worker.name, method, worker.call, method, *args)

    async def aclose(self) -> None:
        hanging = self._patience.hanging
        await close_workers([worker for worker in self._opened if worker.name in hanging], grace=0)
        await close_workers(self._opened)


@asynccontextmanager
async def worker_group(
    config: TrainerConfig, losses: Sequence[LearnerCallback], interrupt: Interrupt, patience: Patience
) -> AsyncGenerator[WorkerGroup]:
    """The run's workers, all ended when the context is left."""
    async with cluster(config, interrupt, patience) as machines:
        workers = WorkerGroup(config, interrupt, patience, machines)
        try:
            await workers.assemble(losses)
            yield workers
        finally:
            interrupt.set()
            await workers.aclose()


def _for_losses(state: TrainerState) -> TrainerState:
    """Without the views: the learner has the memory itself."""
    return replace(state, experience=None, policy=None)
