"""What an engine may cost: memory that is bounded, and an event loop that is never blocked."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from itertools import pairwise

import anyio
import pytest

from orchestrator.hooks.function_hook import function_hook
from orchestrator.hooks.hook import EPOCH_EVENTS, StateUpdate
from orchestrator.hooks.mailbox import Occurrence
from orchestrator.hooks.run_in_worker import run_in_worker
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import DEADLINE, AtEpochEnd, Everything, publish_epochs, quiet, running

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


class Held:
    """Stands for the views that a state holds."""


@pytest.mark.parametrize(("anyio_backend", "overflow"), [("asyncio", "coalesce"), ("trio", "drop")])
async def test_memory_is_bounded_over_ten_thousand_events_with_a_hook_that_never_returns(overflow: str) -> None:
    epochs = 2_500
    hanging = Everything("hanging", gated=True, overflow=overflow)
    after = Everything("after", after=("hanging",), overflow=overflow)
    quick = AtEpochEnd("quick", act=lambda state: StateUpdate(results={"epoch": state.epoch}))
    hooks = (hanging, after, quick)
    alive: weakref.WeakSet[Held] = weakref.WeakSet()
    most_alive = 0
    async with running(*hooks) as engine:
        with anyio.fail_after(5 * DEADLINE):
            for epoch in range(epochs):
                held = Held()
                alive.add(held)
                state = engine.fold(TrainerState(epoch=epoch, results={"views": held}))
                del held
                for event in EPOCH_EVENTS:
                    await engine.publish(event, state)
                if epoch % 500 == 0:
                    await quiet()
                    for hook in hooks:
                        hook.states.clear()
                    gc.collect()
                    most_alive = max(most_alive, len(alive))
            await quiet()
        del state
        for hook in hooks:
            hook.states.clear()
        gc.collect()
        occurrences = sum(type(thing) is Occurrence for thing in gc.get_objects())
        statistics = engine.statistics()
        assert statistics.events == 4 * epochs
        assert occurrences <= 2 * (4 * hanging.max_lag + 1), "per hook: two of each kind wait, one is at work"
        assert most_alive <= 10, "views of the newest epochs, of those that wait and of those at work"
        assert statistics.hooks["hanging"].queue <= 4 * hanging.max_lag
        for hook in statistics.hooks.values():
            assert hook.delivered <= hook.handled + hook.coalesced + hook.queue + 1
        assert len(engine.fold(TrainerState()).results or {}) == 1


def compute(number: int) -> int:
    return sum(range(number))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nothing_that_the_engine_does_blocks_the_event_loop() -> None:
    """Any blocking call in the event loop's thread, however short, raises BlockingError here."""
    blockbuster = pytest.importorskip("blockbuster")

    def block(_: TrainerState) -> None:
        time.sleep(0.001)

    async def compute_elsewhere(state: TrainerState) -> StateUpdate:
        return StateUpdate(results={"sum": await run_in_worker(compute, state.epoch)})

    failing = AtEpochEnd("failing", act=lambda _: 1 / 0)
    blocking = AtEpochEnd("blocking", overflow="block", max_lag=1)
    hooks = [
        function_hook("on_epoch_end", block, {"max_lag": 100}),
        function_hook("on_rollout_end", compute_elsewhere, {}),
        Everything("all", after=("block",)),
        failing,
        blocking,
    ]
    with blockbuster.blockbuster_ctx():
        async with running(*hooks) as engine:
            with anyio.fail_after(DEADLINE):
                await publish_epochs(engine, 10, event="on_rollout_end")
                await publish_epochs(engine, *range(10))
                assert await engine.drain(DEADLINE) == ()
                assert engine.statistics().hooks["block"].handled == 10
                assert engine.statistics().hooks["compute_elsewhere"].handled == 1
                with pytest.raises(blockbuster.BlockingError):
                    time.sleep(0.001)  # noqa: ASYNC251  # the watchdog is awake


async def test_a_hundred_busy_hooks_leave_the_event_loop_to_others() -> None:
    """Between two turns of another task no hook is called more than once: nobody monopolises the event loop."""
    hooks = [Everything(f"h{place}", max_lag=50) for place in range(100)]
    turns: list[int] = []
    over = threading.Event()

    async def take_turns() -> None:
        while not over.is_set():
            turns.append(sum(len(hook.done) for hook in hooks))
            await anyio.lowlevel.checkpoint()

    async def act(_: TrainerState) -> None:
        await anyio.lowlevel.checkpoint()

    for hook in hooks:
        hook.act = act
    async with running(*hooks) as engine, anyio.create_task_group() as tasks:
        tasks.start_soon(take_turns)
        await anyio.lowlevel.checkpoint()
        await publish_epochs(engine, *range(20))
        assert await engine.drain(DEADLINE) == ()
        over.set()
    assert sum(len(hook.done) for hook in hooks) == 2000
    assert max(later - earlier for earlier, later in pairwise(turns)) <= 200
