"""The engine against a model: random sets of hooks, random programs, and the contract checked after every step."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import pytest
from anyio.abc import TaskGroup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.hooks.engine import HookEngine
from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.mailbox import Occurrence
from orchestrator.hooks.runner import HookOverflow
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import DEADLINE, FakeRun, carry_a_cancellation_out_of_its_scope, quiet

pytestmark = pytest.mark.slow

Behavior = Literal["return", "update", "raise", "group", "transient", "cancel itself", "wait", "spin"]
BEHAVIOURS: list[Behavior] = ["return", "update", "raise", "group", "transient", "cancel itself", "wait", "spin"]
FAILING = ("raise", "group", "cancel itself")
WAITING = ("wait", "spin")
EVENTS = ("on_rollout_start", "on_epoch_end")


@dataclass(frozen=True)
class Plan:
    """How a hook is set up; what it does with its nth delivery is `script[n % len(script)]`."""

    name: str
    overflow: Any
    max_lag: int
    every: int
    after: tuple[str, ...]
    on_error: Any
    retries: int
    script: tuple[Behavior, ...]

    def behavior(self, delivery: int) -> Behavior:
        return self.script[delivery % len(self.script)]


class Scripted(Hook):
    """A hook that follows its plan and notes what it sees."""

    backoff = 0.0
    disable_after = 2

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        for setting in ("name", "overflow", "max_lag", "every", "after", "on_error", "retries"):
            setattr(self, setting, getattr(plan, setting))
        self.begun: list[tuple[str, int]] = []
        self.seen_results: list[set[str]] = []
        self.attempts: Counter[str] = Counter()
        self.inside = 0
        self.gate = anyio.Event()

    async def on_rollout_start(self, state: TrainerState) -> StateUpdate | None:
        return await self.handle("on_rollout_start", state)

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
        return await self.handle("on_epoch_end", state)

    async def on_checkpoint_committed(self, state: TrainerState) -> StateUpdate | None:
        return await self.handle("on_checkpoint_committed", state)

    async def on_training_end(self, state: TrainerState) -> StateUpdate | None:
        return await self.handle("on_training_end", state)

    async def handle(self, event: str, state: TrainerState) -> StateUpdate | None:
        key = self.delivery.idempotency_key
        self.attempts[key] += 1
        if self.attempts[key] == 1:
            self.begun.append((event, state.epoch))
            self.seen_results.append(
                {name for name, result in (state.results or {}).items() if result.epoch == state.epoch}
            )
        assert self.delivery.attempt == self.attempts[key] - 1
        assert not self.inside, "a hook overlaps itself"
        self.inside += 1
        try:
            return await self.act(self.plan.behavior(len(self.begun) - 1), event, state)
        finally:
            self.inside -= 1

    async def act(self, behavior: Behavior, event: str, state: TrainerState) -> StateUpdate | None:
        await anyio.lowlevel.checkpoint()
        if behavior == "raise":
            raise ValueError("as planned")
        if behavior == "group":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                raise ValueError("as planned")
        if behavior == "transient" and self.delivery.attempt < 1:
            raise ConnectionError("as planned")
        if behavior == "cancel itself":
            await end_as_if_cancelled()
        if behavior == "wait":
            await self.gate.wait()
        if behavior == "spin":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.gate.wait)
        if behavior == "update":
            return StateUpdate(results={self.plan.name: event})
        return None


async def end_as_if_cancelled() -> None:
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
    await carry_a_cancellation_out_of_its_scope()


# The model.


@dataclass
class ModelEvent:
    number: int
    event: str
    epoch: int
    expected: set[str]
    outcomes: dict[str, str] = field(default_factory=dict[str, str])
    results: set[str] = field(default_factory=set[str])


@dataclass
class ModelHook:
    plan: Plan
    queue: deque[ModelEvent] = field(default_factory=deque[ModelEvent])
    at_work: ModelEvent | None = None
    waits_at_gate: bool = False
    begun: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    seen_results: list[set[str]] = field(default_factory=list[set[str]])
    counts: Counter[str] = field(default_factory=Counter[str])
    failures: Counter[str] = field(default_factory=Counter[str])  # in a row, by event
    closed: bool = False


class Model:
    """What the documentation promises, written as plainly as possible."""

    def __init__(self, plans: list[Plan]) -> None:
        self.hooks = {plan.name: ModelHook(plan) for plan in plans}
        self.order = [plan.name for plan in plans]
        self.events = 0
        self.stops = 0
        self.overflown = False

    def ancestors(self, name: str) -> set[str]:
        direct = self.hooks[name].plan.after
        return set(direct).union(*(self.ancestors(other) for other in direct))

    def publish(self, event: str, epoch: int) -> None:
        due = [hook for hook in self.hooks.values() if not hook.closed and self.is_due(hook.plan, event, epoch)]
        if not any(not hook.closed for hook in self.hooks.values()):
            return
        occurrence = ModelEvent(self.events, event, epoch, {hook.plan.name for hook in due})
        self.events += 1
        for hook in due:
            self.offer(hook, occurrence)

    def is_due(self, plan: Plan, event: str, epoch: int) -> bool:
        if event not in EVENTS:
            return True
        return (epoch if event == "on_epoch_end" else epoch + 1) % plan.every == 0

    def offer(self, hook: ModelHook, occurrence: ModelEvent) -> None:
        same = [waiting for waiting in hook.queue if waiting.event == occurrence.event]
        if len(same) >= hook.plan.max_lag:
            if hook.plan.overflow == "coalesce":
                for waiting in same:
                    hook.queue.remove(waiting)
                    self.settle(hook, waiting, "skipped", "coalesced")
            elif hook.plan.overflow != "block":
                self.settle(hook, occurrence, "skipped", "dropped")
                self.overflown |= hook.plan.overflow == "error"
                return
        hook.counts["delivered"] += 1
        hook.queue.append(occurrence)

    def settle(self, hook: ModelHook, occurrence: ModelEvent, outcome: str, count: str) -> None:
        occurrence.outcomes[hook.plan.name] = outcome
        hook.counts[count] += 1

    def run(self) -> None:
        """Let every hook do what it can until all wait."""
        while any(self.advance(hook) for hook in self.hooks.values()):
            pass

    def advance(self, hook: ModelHook) -> bool:
        if hook.at_work is None:
            if not hook.queue:
                return False
            hook.at_work = hook.queue.popleft()
            return True
        occurrence = hook.at_work
        ancestors = self.ancestors(hook.plan.name)
        if hook.waits_at_gate or not (ancestors & occurrence.expected) <= occurrence.outcomes.keys():
            return False
        behavior = hook.plan.behavior(len(hook.begun))
        hook.begun.append((occurrence.event, occurrence.epoch))
        hook.seen_results.append(occurrence.results & ancestors)
        if behavior in WAITING:
            hook.waits_at_gate = True
        else:
            self.finish(hook, occurrence, behavior)
        return True

    def finish(self, hook: ModelHook, occurrence: ModelEvent, behavior: Behavior) -> None:
        plan = hook.plan
        if behavior == "transient" and plan.retries:
            hook.counts["retried"] += 1
        if behavior in FAILING or (behavior == "transient" and not plan.retries):
            hook.failures[occurrence.event] += 1
            if plan.on_error == "stop":
                self.stops += 1
            if plan.on_error == "disable" and hook.failures[occurrence.event] >= 2:
                hook.closed = True
                for waiting in hook.queue:
                    self.settle(hook, waiting, "skipped", "abandoned")
                hook.queue.clear()
            hook.at_work = None
            self.settle(hook, occurrence, "failed", "failed")
            return
        hook.failures[occurrence.event] = 0
        hook.at_work = None
        self.settle(hook, occurrence, "handled", "handled")
        if behavior == "update":
            occurrence.results.add(plan.name)

    def open(self, name: str) -> None:
        hook = self.hooks[name]
        if hook.waits_at_gate and hook.at_work is not None:
            hook.waits_at_gate = False
            self.finish(hook, hook.at_work, "return")

    @property
    def blocks(self) -> bool:
        return any(
            count > hook.plan.max_lag
            for hook in self.hooks.values()
            for count in Counter(waiting.event for waiting in hook.queue).values()
        )


# The programs.

NAMES = ["a", "b", "c", "d", "e"]


@st.composite
def plans(draw: st.DrawFn) -> list[Plan]:
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    order = draw(st.permutations(names))  # of registration; a hook comes after names that are smaller
    made: list[Plan] = []
    for name in order:
        earlier = [other for other in names if other < name]
        after = draw(st.lists(st.sampled_from(earlier), max_size=2, unique=True)) if earlier else []
        made.append(
            Plan(
                name=name,
                overflow=draw(st.sampled_from(["coalesce", "block", "drop", "coalesce", "block", "error"])),
                max_lag=draw(st.integers(1, 3)),
                every=draw(st.sampled_from([1, 1, 1, 2, 3])),
                after=tuple(after),
                on_error=draw(st.sampled_from(["log", "disable", "stop"])),
                retries=draw(st.integers(0, 1)),
                script=tuple(draw(st.lists(st.sampled_from(BEHAVIOURS), min_size=1, max_size=4))),
            )
        )
    return made


Step = tuple[str, Any]
steps = st.one_of(
    st.tuples(st.just("publish"), st.lists(st.sampled_from(EVENTS), min_size=1, max_size=5)),
    st.tuples(st.just("publish"), st.just(["on_checkpoint_committed"])),
    st.tuples(st.just("open"), st.sampled_from(NAMES)),
    st.tuples(st.just("drain"), st.none()),
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans=plans(), program=st.lists(steps, min_size=1, max_size=14))
def test_the_engine_does_what_the_model_does(backend: str, plans: list[Plan], program: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("orchestrator.hooks"), "disabled", True)
        settled = count_settlements(patch)
        anyio.run(follow, plans, program, settled, backend=backend)


def count_settlements(patch: pytest.MonkeyPatch) -> Counter[tuple[int, str]]:
    """Counts how often each event is settled by each hook."""
    settled: Counter[tuple[int, str]] = Counter()
    settle = Occurrence.settle

    def counting(self: Occurrence, hook: str, outcome: Any) -> None:
        settled[self.number, hook] += 1
        settle(self, hook, outcome)

    patch.setattr(Occurrence, "settle", counting)
    return settled


async def follow(plans: list[Plan], program: list[Step], settled: Counter[tuple[int, str]]) -> None:
    hooks = {plan.name: Scripted(plan) for plan in plans}
    run = FakeRun()
    engine = HookEngine(list(hooks.values()), run)
    model = Model(plans)
    epochs = iter(range(10**6))
    with anyio.fail_after(DEADLINE):
        async with engine.running(), anyio.create_task_group() as tasks:
            for step in [*program, ("end", None)]:
                goes_on = await take(step, engine, model, hooks, epochs, tasks)
                check(engine, model, hooks, run, settled)
                if not goes_on:
                    break
            tasks.cancel_scope.cancel()
    for name, statistics in engine.statistics().hooks.items():
        assert statistics.delivered == (
            statistics.handled + statistics.failed + statistics.coalesced + statistics.abandoned
        ), name
        assert (statistics.queue, hooks[name].inside) == (0, 0)
    assert set(settled.values()) <= {1}
    delivered_or_dropped = sum(s.delivered + s.dropped for s in engine.statistics().hooks.values())
    assert len(settled) == delivered_or_dropped, "every event that was offered to a hook has been settled by it"


async def take(
    step: Step, engine: HookEngine, model: Model, hooks: dict[str, Scripted], epochs: Iterator[int], tasks: TaskGroup
) -> bool:
    """One step for both; whether the run can go on, as it can't when an event has overflown."""
    kind, argument = step
    if kind == "publish":
        # Several events at once, which no hook takes in between; with hooks that block, one after the other.
        state = TrainerState(epoch=next(epochs))
        together = not any(hook.plan.overflow == "block" for hook in model.hooks.values())
        for events in [argument] if together else [[event] for event in argument]:
            if not model.blocks and not await publish(events, state, engine, model, tasks):
                return False
    elif kind == "open" and argument in hooks:
        hook = hooks[argument]
        hook.gate.set()
        hook.gate = anyio.Event()
        model.open(argument)
    elif kind == "drain":
        late = await engine.drain(0)
        assert set(late) == {name for name, hook in model.hooks.items() if hook.at_work or hook.queue}
    elif kind == "end" and not model.blocks:
        return await publish(["on_training_end"], TrainerState(epoch=10**6), engine, model, tasks)
    await quiet()
    model.run()
    return True


async def publish(events: list[str], state: TrainerState, engine: HookEngine, model: Model, tasks: TaskGroup) -> bool:
    ends: list[str] = []

    async def publish_all() -> None:
        try:
            for event in events:
                await engine.publish(event, state)
            ends.append("published")
        except HookOverflow:
            ends.append("overflown")

    tasks.start_soon(publish_all)
    for event in events:
        if not model.overflown:
            model.publish(event, state.epoch)
    await quiet()
    model.run()
    assert ends == (["overflown"] if model.overflown else [] if model.blocks else ["published"])
    return not model.overflown


def check(
    engine: HookEngine, model: Model, hooks: dict[str, Scripted], run: FakeRun, settled: Counter[tuple[int, str]]
) -> None:
    for name, expected in model.hooks.items():
        hook, statistics = hooks[name], engine.statistics().hooks[name]
        assert hook.begun == expected.begun, "first in, first out; nothing lost that had to come"
        assert hook.seen_results == expected.seen_results, "what predecessors returned is there"
        assert statistics.queue == len(expected.queue)
        for count in ("delivered", "handled", "failed", "coalesced", "dropped", "abandoned", "retried"):
            assert getattr(statistics, count) == expected.counts[count], (name, count)
        assert statistics.delivered == (
            statistics.handled
            + statistics.failed
            + statistics.coalesced
            + statistics.abandoned
            + statistics.queue
            + (expected.at_work is not None)
        )
        assert statistics.queue <= 3 * hook.plan.max_lag + 2, "a mailbox is bounded"
    assert len([wish for wish in run.wishes if "failed" in wish]) == model.stops
    assert all(count == 1 for count in settled.values()), "an event is settled once by each hook"
