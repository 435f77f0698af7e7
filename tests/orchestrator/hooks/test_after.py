from __future__ import annotations

import anyio
import pytest

from orchestrator.hooks.hook import Outcome, StateUpdate
from orchestrator.hooks.runner import HookRunner
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import AtEpochEnd, Everything, publish_epochs, quiet, running

pytestmark = pytest.mark.anyio


class Asking(AtEpochEnd):
    """Notes how its predecessors fared."""

    outcomes: dict[str, Outcome]

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
        self.outcomes = dict(self.delivery.outcomes)
        return await super().on_epoch_end(state)


async def test_a_hook_waits_for_its_predecessor_on_the_same_event_only() -> None:
    first, second = AtEpochEnd("first", gated=True), AtEpochEnd("second", after=("first",))
    async with running(second, first) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        assert second.seen == []
        await publish_epochs(engine, 2)
        first.open()
        await quiet()
        assert second.epochs == [1], "the predecessor is at the next event, which is no reason to wait"
        first.open()
        await quiet()
        assert second.epochs == [1, 2]


async def test_what_predecessors_return_is_in_the_state() -> None:
    first = AtEpochEnd("first", act=lambda state: StateUpdate(results={"score": 10 * state.epoch}))
    second = AtEpochEnd("second", after=("first",), act=lambda _: StateUpdate(latest_wandb_uri="https://w/1"))
    third = AtEpochEnd("third", after=("second",))
    beside = AtEpochEnd("beside")
    async with running(third, second, first, beside) as engine:
        await publish_epochs(engine, 7)
        await engine.drain(10)
    assert second.states[0].results is not None
    assert second.states[0].results["score"].value == 70
    assert second.states[0].latest_wandb_uri is None
    assert third.states[0].results is not None, "the predecessor of a predecessor is one too"
    assert third.states[0].latest_wandb_uri == "https://w/1"
    assert beside.states[0].results is None
    assert beside.states[0].latest_wandb_uri is None


async def test_a_failed_predecessor_is_seen_as_failed() -> None:
    failing = AtEpochEnd("failing", act=lambda _: 1 / 0)
    working = AtEpochEnd("working")
    rare = AtEpochEnd("rare", every=1000)
    asking = Asking("asking", after=("failing", "working", "rare"))
    async with running(asking, failing, working, rare) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
    assert asking.epochs == [1]
    assert asking.outcomes == {"failing": "failed", "working": "handled", "rare": "skipped"}


async def test_a_predecessor_whose_event_gave_way_to_a_newer_one_is_not_waited_for() -> None:
    slow = AtEpochEnd("slow", gated=True, max_lag=1)
    asking = Asking("asking", after=("slow",), max_lag=100)
    async with running(slow, asking) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        await publish_epochs(engine, 2, 3)
        slow.open()
        await quiet()
        assert asking.epochs == [1, 2]
        assert asking.outcomes == {"slow": "skipped"}
        slow.open()
        await quiet()
        assert asking.epochs == [1, 2, 3]
        assert asking.outcomes == {"slow": "handled"}


async def test_hooks_after_one_that_is_disabled_go_on() -> None:
    failing = AtEpochEnd("failing", act=lambda _: 1 / 0, on_error="disable", disable_after=2)
    asking = Asking("asking", after=("failing",), max_lag=100)
    async with running(failing, asking) as engine:
        for epoch in range(1, 6):
            await publish_epochs(engine, epoch)
            await engine.drain(10)
        assert engine.statistics().hooks["failing"].state == "disabled"
        assert not engine.statistics().hooks["failing"].queue
    assert [epoch for _, epoch in failing.seen] == [1, 2]
    assert asking.epochs == [1, 2, 3, 4, 5]
    assert asking.outcomes == {"failing": "skipped"}


async def test_a_chain_of_many_hooks_handles_an_event_in_its_order() -> None:
    order: list[str] = []
    names = [f"h{place}" for place in range(40)]
    hooks = [
        Everything(name, after=tuple(names[max(0, place - 3) : place]), act=lambda _, name=name: order.append(name))
        for place, name in enumerate(names)
    ]
    async with running(*reversed(hooks)) as engine:
        await publish_epochs(engine, 1)
        assert await engine.drain(10) == ()
    assert order == names


async def test_ending_while_hooks_wait_for_each_other_leaves_nobody_waiting() -> None:
    first = AtEpochEnd("first", gated=True)
    others = [AtEpochEnd(f"other{place}", after=("first",)) for place in range(3)]
    async with running(first, *others) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        runners: dict[str, HookRunner] = engine._runners  # pyright: ignore[reportPrivateUsage]
        assert len(runners) == 4
        assert all(not runner.idle for runner in runners.values())
    assert all(runner.idle for runner in runners.values())
    assert [statistics.abandoned for statistics in engine.statistics().hooks.values()] == [1, 1, 1, 1]
    assert anyio.get_current_task()
