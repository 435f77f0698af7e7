from __future__ import annotations

import anyio
import pytest

from orchestrator.hooks.hook import EPOCH_EVENTS, Every
from orchestrator.hooks.runner import HookOverflow
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import AtEpochEnd, Everything, publish_epochs, quiet, running

pytestmark = pytest.mark.anyio


async def test_a_hook_gets_its_events_in_order_and_one_at_a_time() -> None:
    hook = Everything("hook", gated=True, max_lag=3)
    async with running(hook) as engine:
        for epoch in (1, 2, 3):
            for event in EPOCH_EVENTS:
                await publish_epochs(engine, epoch, event=event)
        for _ in range(12):
            await quiet()
            assert hook.inside == 1
            hook.open()
        assert await engine.drain(10) == ()
    assert hook.done == [(event, epoch) for epoch in (1, 2, 3) for event in EPOCH_EVENTS]
    assert hook.most_inside == 1


async def test_a_slow_hook_holds_up_neither_the_publisher_nor_other_hooks() -> None:
    slow, quick = AtEpochEnd("slow", gated=True), AtEpochEnd("quick")
    async with running(slow, quick) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        await publish_epochs(engine, 2)
        await quiet()
        assert quick.epochs == [1, 2]
        assert slow.seen == [("on_epoch_end", 1)]
        assert slow.done == []


async def test_hooks_are_inside_their_callbacks_at_the_same_time() -> None:
    hooks = [AtEpochEnd(name, gated=True) for name in "abc"]
    async with running(*hooks) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        assert [hook.inside for hook in hooks] == [1, 1, 1]


async def test_an_event_that_no_hook_handles_is_no_event() -> None:
    async with running(AtEpochEnd("hook")) as engine:
        assert engine.listens("on_epoch_end")
        assert not engine.listens("on_rollout_end")
        await publish_epochs(engine, 1, event="on_rollout_end")
        assert engine.statistics().events == 0


async def test_every_n_epochs_means_the_same_epochs_for_all_four_events() -> None:
    hook = Everything("hook", every=2, max_lag=100)
    async with running(hook) as engine:
        for epoch in range(6):
            for event in EPOCH_EVENTS[:3]:
                await publish_epochs(engine, epoch, event=event)
            await publish_epochs(engine, epoch + 1)
        await engine.drain(10)
    assert [epoch for event, epoch in hook.done if event == "on_rollout_start"] == [1, 3, 5]
    assert [epoch for event, epoch in hook.done if event == "on_epoch_end"] == [2, 4, 6]


async def test_every_n_agent_steps_delivers_when_a_multiple_is_passed() -> None:
    hook = AtEpochEnd("hook", every=Every(agent_steps=1000), max_lag=100)
    async with running(hook) as engine:
        for agent_step in (300, 999, 1000, 1200, 1900, 2100, 5500, 5600, 6000):
            await engine.publish("on_epoch_end", TrainerState(epoch=agent_step, agent_step=agent_step))
        await engine.drain(10)
    assert hook.epochs == [1000, 2100, 5500, 6000]


async def test_every_n_seconds_follows_the_clock() -> None:
    hook = AtEpochEnd("hook", every=Every(seconds=10), max_lag=100)
    async with running(hook, clock=iter((50.0, 55.0, 60.0, 69.0, 71.0, 100.0)).__next__) as engine:
        await publish_epochs(engine, *range(1, 7))
        await engine.drain(10)
    assert hook.epochs == [3, 5, 6]


async def test_what_is_not_of_an_epoch_comes_whatever_every_says() -> None:
    hook = Everything("hook", every=1000)
    async with running(hook) as engine:
        for event in (
            "on_new_training_run",
            "on_epoch_end",
            "on_checkpoint_committed",
            "on_training_end",
            "on_failure",
        ):
            await publish_epochs(engine, 1, event=event)
        await engine.drain(10)
    assert [event for event, _ in hook.done] == [
        "on_new_training_run",
        "on_checkpoint_committed",
        "on_training_end",
        "on_failure",
    ]


async def test_hooks_get_the_epochs_for_which_they_were_chosen_before() -> None:
    often, rarely = AtEpochEnd("often", every=2), AtEpochEnd("rarely", every=4)
    other = AtEpochEnd("other", every=10)
    async with running(often, rarely, other) as engine:
        for epoch in range(1, 6):
            due = engine.due("on_epoch_end", TrainerState(epoch=epoch), ["often", "rarely"])
            chosen = {name: epoch == 3 or name in due for name in ("often", "rarely")}
            await engine.publish("on_epoch_end", TrainerState(epoch=epoch), chosen=chosen)
            await engine.drain(10)
        await engine.drain(10)
    assert often.epochs == [2, 3, 4]
    assert rarely.epochs == [3, 4]
    assert other.epochs == []


async def test_named_hooks_can_be_given_an_event_by_themselves_and_it_is_known_what_they_have_in_hand() -> None:
    saving, other = Everything("saving", gated=True, every=100, max_lag=1), AtEpochEnd("other")
    async with running(saving, other) as engine:
        for epoch in (1, 2):
            engine.deliver("on_epoch_end", TrainerState(epoch=epoch), ["saving"])
            await quiet()
        assert engine.epochs_in_hand(["saving"]) == {1, 2}, "one in hand and one that waits"
        assert engine.epochs_in_hand(["other"]) == frozenset()
        saving.open_for_good()
        await engine.drain(10)
        assert engine.epochs_in_hand() == frozenset()
    assert saving.done == [("on_epoch_end", 1), ("on_epoch_end", 2)]
    assert other.epochs == []


async def test_coalescing_keeps_the_newest_event_of_each_kind() -> None:
    hook = Everything("hook", gated=True, max_lag=1)
    async with running(hook) as engine:
        await publish_epochs(engine, 0, event="on_rollout_start")
        await quiet()
        for epoch in range(1, 6):
            await publish_epochs(engine, epoch, event="on_rollout_end")
            await publish_epochs(engine, epoch)
        statistics = engine.statistics().hooks["hook"]
        assert (statistics.delivered, statistics.coalesced, statistics.queue) == (11, 8, 2)
        hook.open_for_good()
        await engine.drain(10)
    assert hook.done == [("on_rollout_start", 0), ("on_rollout_end", 5), ("on_epoch_end", 5)]


async def test_dropping_keeps_the_oldest_events() -> None:
    hook = AtEpochEnd("hook", gated=True, max_lag=2, overflow="drop")
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        await publish_epochs(engine, 2, 3, 4, 5)
        hook.open_for_good()
        await engine.drain(10)
        statistics = engine.statistics().hooks["hook"]
    assert hook.epochs == [1, 2, 3]
    assert (statistics.delivered, statistics.dropped, statistics.coalesced) == (3, 2, 0)


async def test_blocking_makes_the_publisher_wait_until_there_is_room() -> None:
    hook = AtEpochEnd("hook", gated=True, max_lag=2, overflow="block")
    published: list[int] = []

    async def publish() -> None:
        for epoch in range(1, 7):
            await publish_epochs(engine, epoch)
            published.append(epoch)

    async with running(hook) as engine, anyio.create_task_group() as tasks:
        tasks.start_soon(publish)
        await quiet()
        assert published == [1, 2, 3], "the first is being handled, two wait"
        for expected in ([1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]):
            statistics = engine.statistics().hooks["hook"]
            assert statistics.queue == 3, "and the one that the publisher waits with"
            hook.open()
            await quiet()
            assert published == expected
        hook.open_for_good()
        await engine.drain(10)
        blocked_seconds = engine.statistics().hooks["hook"].blocked_seconds
        assert blocked_seconds > 0
        assert engine.statistics().hooks["hook"].blocked_seconds == blocked_seconds, "nobody waits now"
    assert hook.epochs == [1, 2, 3, 4, 5, 6]


async def test_a_blocked_publisher_has_given_the_event_to_everyone_and_can_be_cancelled() -> None:
    blocking = AtEpochEnd("blocking", gated=True, max_lag=1, overflow="block")
    late = AtEpochEnd("late", after=("blocking",), max_lag=100)
    async with running(blocking, late) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        await publish_epochs(engine, 2)
        with anyio.CancelScope() as publishing:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(publish_epochs, engine, 3)
                await quiet()
                publishing.cancel()
        statistics = engine.statistics().hooks["blocking"]
        assert statistics.blocked_seconds > 0
        assert engine.statistics().hooks["blocking"].blocked_seconds == statistics.blocked_seconds, "nobody waits now"
        blocking.open_for_good()
        assert await engine.drain(10) == ()
    assert blocking.epochs == [1, 2, 3], "what was published is delivered, though its publisher has gone"
    assert late.epochs == [1, 2, 3]


async def test_unblocking_lets_publishers_go_when_the_run_must_end() -> None:
    hook = AtEpochEnd("hook", gated=True, max_lag=1, overflow="block")
    async with running(hook) as engine, anyio.create_task_group() as tasks:
        await publish_epochs(engine, 1)
        await quiet()
        tasks.start_soon(publish_epochs, engine, 2, 3, 4, 5)
        await quiet()
        assert engine.statistics().hooks["hook"].queue == 2
        engine.unblock()
        await quiet()
        assert engine.statistics().hooks["hook"].queue == 4
        tasks.cancel_scope.cancel()


async def test_overflow_error_fails_the_publisher_after_everyone_has_the_event() -> None:
    strict = AtEpochEnd("strict", gated=True, max_lag=1, overflow="error")
    other = AtEpochEnd("other", max_lag=100)
    late = AtEpochEnd("late", after=("strict",), max_lag=100)
    async with running(strict, other, late) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        await publish_epochs(engine, 2)
        with pytest.raises(HookOverflow, match="hook 'strict' is too far behind when on_epoch_end of epoch 3"):
            await publish_epochs(engine, 3)
        strict.open_for_good()
        assert await engine.drain(10) == ()
    assert strict.epochs == [1, 2]
    assert other.epochs == [1, 2, 3]
    assert late.epochs == [1, 2, 3]


@pytest.mark.parametrize("overflow", ["block", "coalesce", "drop", "error"])
async def test_start_and_end_always_get_in(overflow: str) -> None:
    hook = Everything("hook", gated=True, max_lag=1, overflow=overflow)
    async with running(hook) as engine:
        await publish_epochs(engine, 0, event="on_new_training_run")
        await publish_epochs(engine, 1)
        await publish_epochs(engine, 1, event="on_training_end")
        await publish_epochs(engine, 1, event="on_failure")
        hook.open_for_good()
        await engine.drain(10)
    assert [event for event, _ in hook.done] == ["on_new_training_run", "on_epoch_end", "on_training_end", "on_failure"]


async def test_epoch_events_never_displace_a_checkpoint_that_waits() -> None:
    hook = Everything("hook", gated=True, max_lag=1)
    async with running(hook) as engine:
        await publish_epochs(engine, 0)
        await quiet()
        await publish_epochs(engine, 1, event="on_checkpoint_committed")
        await publish_epochs(engine, 1, 2, 3, 4)
        hook.open_for_good()
        await engine.drain(10)
    assert hook.done == [("on_epoch_end", 0), ("on_checkpoint_committed", 1), ("on_epoch_end", 4)]


async def test_draining_waits_for_queues_up_to_its_deadline_and_names_who_is_late() -> None:
    slow, quick = AtEpochEnd("slow", gated=True), AtEpochEnd("quick")
    carefree = AtEpochEnd("carefree", gated=True, drain=False)
    async with running(slow, quick, carefree) as engine:
        await publish_epochs(engine, 1, 2)
        await quiet()
        assert await engine.drain(0) == ("slow",)
        async with anyio.create_task_group() as tasks:
            late: list[tuple[str, ...]] = []

            async def drain() -> None:
                late.append(await engine.drain(10))

            tasks.start_soon(drain)
            await quiet()
            slow.open()
            await quiet()
            assert not late
            slow.open()
        assert late == [()]
    assert slow.epochs == [1, 2]
    assert carefree.epochs == []


async def test_leaving_the_engine_ends_what_was_not_drained() -> None:
    hook = AtEpochEnd("hook", gated=True)
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        await publish_epochs(engine, 2, 3)
    statistics = engine.statistics().hooks["hook"]
    assert (statistics.delivered, statistics.handled, statistics.abandoned) == (3, 0, 3)
    assert statistics.state == "ended"
    await publish_epochs(engine, 4)
    assert engine.statistics().hooks["hook"].delivered == 3


async def test_an_engine_tells_its_state() -> None:
    hook = AtEpochEnd("hook", gated=True)
    async with running(hook) as engine:
        assert repr(engine) == "<HookEngine: 0 events, hooks [<HookRunner 'hook': idle, 0 waiting>]>"
        await publish_epochs(engine, 7)
        await quiet()
        await publish_epochs(engine, 9)
        assert repr(engine) == (
            "<HookEngine: 2 events, hooks [<HookRunner 'hook': at on_epoch_end of epoch 7, 1 waiting>]>"
        )
        statistics = engine.statistics().hooks["hook"]
        assert (statistics.queue, statistics.lag) == (1, 2)
        assert statistics.busy_seconds > 0
        assert statistics.hidden_seconds == pytest.approx(statistics.busy_seconds)
        assert engine.holders() == ("hook",)
        hook.open_for_good()
        await engine.drain(10)
        statistics = engine.statistics().hooks["hook"]
        assert (statistics.state, statistics.queue, statistics.lag) == ("idle", 0, 0)
        assert (statistics.delivered, statistics.handled) == (2, 2)
        assert engine.holders() == ()
    assert repr(engine).endswith("'hook': ended, 0 waiting>]>")


async def test_holders_are_named_with_the_oldest_first() -> None:
    old, young = AtEpochEnd("old", gated=True), AtEpochEnd("young", gated=True)
    async with running(young, old) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        young.open()
        await quiet()
        await publish_epochs(engine, 2)
        assert engine.holders() == ("old", "young")
