"""What docs/hooks.md promises about events and their delivery, through `Trainer`."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator import (
    CheckpointsConfig,
    Every,
    Hook,
    StateUpdate,
    Trainer,
)
from orchestrator.hooks.check import HookConfigurationError
from orchestrator.hooks.hook import EVENTS
from orchestrator.hooks.runner import HookFailed, HookOverflow
from state.trainer_state import TrainerState
from tests.orchestrator.training import small_config
from tests.promises.acting import Act, trained

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


class Fail(Hook):
    on_error = "raise"

    async def on_epoch_end(self, state: TrainerState) -> None:
        raise ArithmeticError


@pytest.mark.parametrize("event", EVENTS)
async def test_every_event_reaches_decorated_functions(event: str, tmp_path: Path) -> None:
    config = small_config(epochs=2, run_dir=tmp_path / "run", checkpoints=CheckpointsConfig(every=1))
    trainer = Trainer(config, hooks=[Fail()] if event == "on_failure" else [])
    seen: list[TrainerState] = []
    seen_in_thread: list[TrainerState] = []

    @getattr(trainer, event)(overflow="block")
    async def asynchronous(state: TrainerState) -> None:
        seen.append(state)

    @getattr(trainer, event)(overflow="block")
    def plain(state: TrainerState) -> None:
        assert threading.current_thread() is not threading.main_thread(), "it may block"
        seen_in_thread.append(state)

    if event == "on_failure":
        with pytest.raises(HookFailed):
            await trainer.run()
    else:
        await trainer.run()
    assert seen
    assert seen == seen_in_thread
    if event != "on_checkpoint_committed":  # saving takes long on a busy machine, which may leave out the first epoch's
        assert (len(seen) == 1) == (event in ("on_new_training_run", "on_training_end", "on_failure"))


async def test_a_checkpoint_and_its_copy_are_both_told_of(tmp_path: Path) -> None:
    checkpoints = CheckpointsConfig(every=100, upload=(tmp_path / "store").as_uri())
    trainer = Trainer(small_config(epochs=2, run_dir=tmp_path / "run", checkpoints=checkpoints))
    told: list[str | None] = []

    @trainer.on_checkpoint_committed(overflow="block")
    async def note(state: TrainerState) -> None:
        told.append(state.latest_checkpoint_uri)

    final = await trainer.run()
    name = f"{final.epoch:08d}"
    assert told == [
        (tmp_path / "run" / "checkpoints" / name).as_uri(),
        (tmp_path / "store" / "run" / "checkpoints" / name).as_uri(),
    ]


# How they are delivered.


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (3, [3, 6]),
        (Every(epochs=2), [2, 4, 6]),
        (Every(agent_steps=250), None),
        (Every(seconds=1e-9), [2, 3, 4, 5, 6]),
        (Every(seconds=1e6), []),
    ],
    ids=str,
)
async def test_the_distance_between_deliveries(every: Any, expected: list[int] | None) -> None:
    seen: list[int] = []
    final = await trained(Act(lambda state: seen.append(state.epoch), every=every), epochs=6)
    if expected is not None:
        assert [epoch for epoch in seen if epoch <= 6] == expected
    else:
        assert 1 < len(seen) < final.epoch


@pytest.mark.parametrize("overflow", ["block", "coalesce", "drop"])
async def test_what_a_full_mailbox_does(overflow: Any) -> None:
    seen: list[int] = []
    gate = anyio.Event()

    class Slow(Hook):
        max_lag = 1

        async def on_epoch_end(self, state: TrainerState) -> None:
            seen.append(state.epoch)
            await (anyio.lowlevel.checkpoint() if self.overflow == "block" else gate.wait())

    hook = Slow()
    hook.overflow = overflow
    opener = Act(lambda state: gate.set() if state.epoch == 6 else None, "opener")
    async with Trainer(small_config(epochs=6, staleness=0), hooks=[hook, opener]).start() as run:
        final = await run.result()
        statistics = run.hook_statistics()["slow"]
    assert seen == sorted(set(seen))
    assert seen[0] == 1
    if overflow == "drop":
        assert {3, 4, 5}.isdisjoint(seen), "one is at work, one waits"
    else:
        assert final.epoch in seen, "the newest replaces those that wait"
    lost = {"block": 0, "coalesce": statistics.coalesced, "drop": statistics.dropped}[overflow]
    assert statistics.handled == len(seen) == final.epoch - lost
    assert (lost > 0) == (overflow != "block")


async def test_a_hook_that_must_not_fall_behind_fails_the_run() -> None:
    class Slow(Hook):
        overflow = "error"
        max_lag = 1

        async def on_epoch_end(self, state: TrainerState) -> None:
            await anyio.sleep_forever()

    with pytest.raises(HookOverflow, match="'slow' is too far behind"):
        async with Trainer(small_config(epochs=100), hooks=[Slow()]).start() as run:
            run.limit_drain(0.1)
            await run.result()


async def test_a_delivery_is_tried_again_with_the_same_key_and_state_and_then_told_to_those_after() -> None:
    attempts: list[tuple[str, int, int]] = []
    outcomes: list[Any] = []

    class Flaky(Hook):
        retries = 2
        backoff = 0.0
        transient = (LookupError,)
        overflow = "block"

        async def on_epoch_end(self, state: TrainerState) -> StateUpdate:
            attempts.append((self.delivery.idempotency_key, self.delivery.attempt, state.epoch))
            if self.delivery.attempt < 2:
                raise KeyError
            return StateUpdate(results={"of": state.epoch})

    class After(Hook):
        after = ("flaky",)
        overflow = "block"

        async def on_epoch_end(self, state: TrainerState) -> None:
            assert state.results is not None
            result: Any = state.results["of"]
            outcomes.append((dict(self.delivery.outcomes), result.value, result.hook, state.epoch == result.epoch))

    final = await trained(After(), Flaky(), epochs=2)
    assert outcomes == [({"flaky": "handled"}, epoch, "flaky", True) for epoch in range(1, final.epoch + 1)]
    assert [(attempt, epoch) for _, attempt, epoch in attempts] == [
        (attempt, epoch) for epoch in range(1, final.epoch + 1) for attempt in range(3)
    ]
    assert len({key for key, _, _ in attempts}) == final.epoch


async def test_an_attempt_that_takes_too_long_is_ended_and_counts_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    class Hanging(Hook):
        timeout = 0.01

        async def on_epoch_end(self, state: TrainerState) -> None:
            await anyio.sleep_forever()

    async with Trainer(small_config(epochs=2), hooks=[Hanging()]).start() as run:
        await run.result()
        assert run.hook_statistics()["hanging"].failed > 0
    assert "TimeoutError" in caplog.text


@pytest.mark.parametrize("policy", ["log", "disable", "stop", "raise"])
async def test_what_follows_when_a_hook_keeps_failing(policy: Any) -> None:
    tried: list[int] = []

    def fail(state: TrainerState) -> None:
        tried.append(state.epoch)
        raise ArithmeticError("no")

    hook = Act(fail, on_error=policy, disable_after=2)
    trainer = Trainer(small_config(epochs=5, staleness=0), hooks=[hook])
    if policy in ("stop", "raise"):
        with pytest.raises(HookFailed) as caught:
            await trainer.run()
        assert isinstance(caught.value.__cause__, ArithmeticError)
        assert len(tried) < 5
    else:
        final = await trainer.run()
        assert len(tried) == (2 if policy == "disable" else final.epoch)


@pytest.mark.parametrize("drain", [True, False])
async def test_the_end_of_a_run_waits_for_a_hook_that_drains(drain: bool) -> None:
    handled: list[int] = []
    ended = anyio.Event()

    class Late(Hook):
        async def on_epoch_end(self, state: TrainerState) -> None:
            await ended.wait()
            handled.append(state.epoch)

    hook = Late()
    hook.drain = drain
    trainer = Trainer(small_config(epochs=2, staleness=0), hooks=[hook])
    async with trainer.start() as run:
        await run.next_state(run.state)
        if not drain:
            await run.result()
        ended.set()
        final = await run.result()
    assert (final.epoch in handled) == drain


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (lambda: [Act(print, after=("nobody",))], "nobody"),
        (lambda: [Act(print, "a", after=("b",)), Act(print, "b", after=("a",))], "circular|cycle|each other"),
        (lambda: [Act(print, "same"), Act(print, "same")], "same"),
        (lambda: [Act(print, overflow="wait")], "overflow"),
        (lambda: [Act(print, max_lag=0)], "max_lag"),
        (lambda: [Act(print, on_error="ignore")], "on_error"),
        (lambda: [type("Misspelt", (Hook,), {"on_epoch_ends": Act.on_epoch_end})()], "on_epoch_ends"),
    ],
)
def test_wrong_hooks_are_errors_when_the_trainer_is_made(hooks: Callable[[], list[Hook]], message: str) -> None:
    with pytest.raises(HookConfigurationError, match=message):
        Trainer(small_config(), hooks=hooks())


async def test_a_hook_at_work_in_one_run_is_refused_to_another() -> None:
    hook = Act(lambda state: None)
    async with Trainer(small_config(epochs=10**6), hooks=[hook]).start() as run:
        with pytest.raises(HookConfigurationError, match="at work in another run"):
            await Trainer(small_config(epochs=2), hooks=[hook]).run()
        run.stop()


async def test_resources_are_entered_before_the_first_event_and_left_after_the_last() -> None:
    order: list[str] = []

    class Holding(Hook):
        @asynccontextmanager
        async def resources(self) -> AsyncGenerator[None]:
            order.append("enter")
            yield
            order.append("leave")

        async def on_new_training_run(self, state: TrainerState) -> None:
            order.append("first")

        async def on_training_end(self, state: TrainerState) -> None:
            order.append("last")

    await trained(Holding(), epochs=2)
    assert order == ["enter", "first", "last", "leave"]


async def test_a_hook_without_its_resources_gets_no_events_and_its_policy_applies() -> None:
    events: list[str] = []

    class Without(Hook):
        on_error = "stop"

        @asynccontextmanager
        async def resources(self) -> AsyncGenerator[None]:
            raise ConnectionError("no such server")
            yield

        async def on_epoch_end(self, state: TrainerState) -> None:
            events.append("epoch")

    with pytest.raises(HookFailed) as caught:
        await trained(Without(), epochs=10**6)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert not events
