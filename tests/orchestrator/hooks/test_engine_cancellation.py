"""Cancellation at every step that the event loop takes while an engine with all kinds of hooks runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
import trio

from orchestrator.hooks.engine import HookEngine
from orchestrator.hooks.hook import Hook, StateUpdate
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import DEADLINE, AtCommit, AtEpochEnd, Everything, FakeRun, publish_epochs

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


class Resourceful(AtEpochEnd):
    """Counts what it holds; entering, working and leaving all take several steps."""

    held = 0

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        await anyio.lowlevel.checkpoint()
        self.held += 1
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                await anyio.lowlevel.checkpoint()
                yield
                await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.held -= 1


async def take_steps(_: TrainerState) -> None:
    for _ in range(3):
        await anyio.lowlevel.checkpoint()


def make_hooks() -> list[Hook]:
    class Flaky(Hook):
        retries, backoff, timeout = 1, 0.0, 60.0

        async def on_epoch_end(self, state: TrainerState) -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.lowlevel.checkpoint)
            if not self.delivery.attempt:
                raise ConnectionError("down")

    return [
        Resourceful("resourceful", act=take_steps, after=("saver",)),
        AtEpochEnd("saver", act=lambda state: StateUpdate(latest_checkpoint_uri=f"file:///{state.epoch}")),
        AtEpochEnd("blocking", act=take_steps, overflow="block", max_lag=1),
        Everything("all", act=take_steps, after=("blocking", "flaky"), max_lag=1),
        AtCommit("keeper", act=take_steps, max_lag=1),
        AtEpochEnd("failing", act=lambda _: 1 / 0, on_error="disable", disable_after=2),
        Flaky(),
    ]


@contextmanager
def at_step(number: int, act: Callable[[], None]) -> Generator[list[int]]:
    """Calls `act` before the event loop's step of that number; yields the count of steps so far."""
    steps = [0]

    def count() -> None:
        if steps[0] == number:
            act()
        steps[0] += 1

    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:

        class Counting(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                count()

        instrument = Counting()
        trio.lowlevel.add_instrument(instrument)
        try:
            yield steps
        finally:
            trio.lowlevel.remove_instrument(instrument)
        return

    run = asyncio.Handle._run  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]

    def counting(self: Any) -> None:
        count()
        run(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", counting)
        yield steps


def check_nothing_is_left(hooks: list[Hook], engine: HookEngine, tasks_before: int) -> None:
    for hook in hooks:
        assert getattr(hook, "inside", 0) == 0, hook.name
        assert getattr(hook, "held", 0) == 0, hook.name
    for name, statistics in engine.statistics().hooks.items():
        assert statistics.queue == 0, name
        assert statistics.delivered == (
            statistics.handled + statistics.failed + statistics.coalesced + statistics.abandoned
        ), name
    assert len(anyio.get_running_tasks()) == tasks_before


async def run_and_cancel(step: int) -> bool:
    """Whether the run was cancelled, rather than over before that step."""
    hooks = make_hooks()
    engine = HookEngine(hooks, FakeRun())
    tasks_before = len(anyio.get_running_tasks())
    with anyio.fail_after(DEADLINE):
        with anyio.CancelScope() as scope, at_step(step, scope.cancel) as steps:
            async with engine.running():
                for epoch in range(4):
                    await publish_epochs(engine, epoch, event="on_rollout_end")
                    await publish_epochs(engine, epoch)
                await publish_epochs(engine, 4, event="on_training_end")
                await engine.drain(DEADLINE)
    check_nothing_is_left(hooks, engine, tasks_before)
    if step >= steps[0]:
        assert (
            sum(statistics.abandoned for name, statistics in engine.statistics().hooks.items() if name != "failing")
            == 0
        )
        return False
    return True


async def test_a_run_that_is_cancelled_at_any_step_leaves_nothing_behind(capfd: Any, caplog: Any) -> None:
    caplog.set_level("CRITICAL", "orchestrator.hooks")
    step = 0
    while await run_and_cancel(step):
        step += 1
    assert step > 50


async def cancel_publisher(step: int) -> bool:
    """The publisher alone is cancelled; whether it was, rather than done before that step."""
    hooks = make_hooks()
    engine = HookEngine(hooks, FakeRun())
    tasks_before = len(anyio.get_running_tasks())
    with anyio.fail_after(DEADLINE):
        async with engine.running():
            with anyio.CancelScope() as scope, at_step(step, scope.cancel) as steps:
                for epoch in range(4):
                    await publish_epochs(engine, epoch)
                    await anyio.lowlevel.checkpoint()
            await publish_epochs(engine, 4, event="on_training_end")
            assert await engine.drain(DEADLINE) == ()
            statistics = engine.statistics().hooks
            for name in ("resourceful", "saver", "blocking", "all", "keeper", "flaky"):
                assert statistics[name].delivered == statistics[name].handled + statistics[name].coalesced, name
            assert statistics["blocking"].coalesced == 0
    check_nothing_is_left(hooks, engine, tasks_before)
    return scope.cancelled_caught or step < steps[0]


async def test_a_publisher_that_is_cancelled_at_any_step_has_lost_no_event_for_anyone(caplog: Any) -> None:
    caplog.set_level("CRITICAL", "orchestrator.hooks")
    step = 0
    while await cancel_publisher(step):
        step += 1
    assert step > 20


async def test_a_drain_that_is_cancelled_leaves_the_hooks_at_work() -> None:
    hook = AtEpochEnd("hook", gated=True)
    engine = HookEngine([hook], FakeRun())
    with anyio.fail_after(DEADLINE):
        async with engine.running():
            await publish_epochs(engine, 1)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(engine.drain, DEADLINE)
                    await anyio.lowlevel.checkpoint()
                    scope.cancel()
            hook.open_for_good()
            assert await engine.drain(DEADLINE) == ()
    assert hook.epochs == [1]
