from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator import CheckpointsConfig, Trainer
from orchestrator.checkpoints import find_checkpoint
from orchestrator.hooks.engine import HookEngine
from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.runner import HookFailed
from orchestrator.snapshots.checkpoint_files import read_checkpoint
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import (
    AtEpochEnd,
    Everything,
    FakeRun,
    carry_a_cancellation_out_of_its_scope,
    publish_epochs,
    quiet,
    running,
)
from tests.orchestrator.training import small_config

pytestmark = pytest.mark.anyio


class Flaky(Hook):
    """Fails the given number of times, and notes each attempt."""

    name = "flaky"
    backoff = 0.0

    def __init__(
        self, failures: int, error: Callable[[], BaseException] = lambda: ConnectionError("down"), **settings: Any
    ):
        self.failures = failures
        self.error = error
        self.attempts: list[tuple[str, int, TrainerState]] = []
        for setting, value in settings.items():
            setattr(self, setting, value)

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.attempts.append((self.delivery.idempotency_key, self.delivery.attempt, state))
        if len(self.attempts) <= self.failures:
            raise self.error()


def fail_at_first(state: TrainerState) -> None:
    if state.epoch == 1:
        raise ZeroDivisionError("first")


def wishes(engine: HookEngine) -> list[str]:
    assert isinstance(engine.run, FakeRun)
    return engine.run.wishes


async def test_a_failure_is_logged_with_its_traceback_and_the_hook_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    hook = AtEpochEnd("hook", act=fail_at_first)
    async with running(hook) as engine:
        await publish_epochs(engine, 1, 2)
        await engine.drain(10)
        statistics = engine.statistics().hooks["hook"]
        assert (statistics.failed, statistics.handled) == (1, 1)
        assert engine.failure() is None
    assert hook.epochs == [2]
    assert "hook 'hook' failed to handle on_epoch_end of epoch 1: ZeroDivisionError" in caplog.text
    assert "in note" in caplog.text


async def test_another_error_has_a_traceback_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    def fail(state: TrainerState) -> None:
        if state.epoch == 2:
            raise KeyError("second")
        raise ValueError("first")

    async with running(AtEpochEnd("hook", act=fail, max_lag=100)) as engine:
        await publish_epochs(engine, 1, 2, 3)
        assert await engine.drain(10) == ()
    traced = [type(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert traced == [ValueError, KeyError]


async def test_the_log_has_one_traceback_for_failures_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    hook = AtEpochEnd("hook", act=lambda _: 1 / 0, max_lag=100)
    async with running(hook) as engine:
        await publish_epochs(engine, *range(1, 51))
        await engine.drain(10)
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 50
    assert caplog.text.count("Traceback") == 1


@pytest.mark.parametrize("failing", [("on_epoch_end",), ("on_rollout_end", "on_epoch_end"), ("on_train_phase_end",)])
async def test_a_hook_that_always_fails_at_some_events_logs_one_traceback_for_each(
    failing: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    class Partly(Hook):
        overflow = "block"

        def _handle(self, event: str) -> None:
            if event in failing:
                raise ZeroDivisionError(event)

        async def on_rollout_end(self, state: TrainerState) -> None:
            self._handle("on_rollout_end")

        async def on_train_phase_end(self, state: TrainerState) -> None:
            self._handle("on_train_phase_end")

        async def on_epoch_end(self, state: TrainerState) -> None:
            self._handle("on_epoch_end")

    final = await Trainer(small_config(epochs=5), hooks=[Partly()]).run()
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    for event in failing:
        first, *others = [record for record in told if f"handle {event} of" in record.getMessage()]
        assert first.exc_info
        assert not any(record.exc_info for record in others)
        counts = [record.getMessage().rpartition("(")[2] for record in others]
        assert counts == [f"{number} times in a row)" for number in range(2, final.epoch + 1)]
    assert len(told) == final.epoch * len(failing)


@pytest.mark.slow
@pytest.mark.parametrize(
    "state", [{1: "a"}, {"a": {None: 1}}, {"a": [{(1, 2): 3}]}, {"a": {True: 1}}, {"a": {b"b": 1}}]
)
async def test_a_checkpoint_is_without_the_state_of_a_hook_whose_keys_are_no_text(
    state: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Keeping(Hook):
        def __init__(self, name: str, state: dict[str, object]) -> None:
            self.name = name
            self._state = state

        async def on_epoch_end(self, state: TrainerState) -> None: ...

        def state_dict(self) -> dict[str, object]:
            return self._state

    config = small_config(epochs=3, run_dir=tmp_path, checkpoints=CheckpointsConfig(every=1))
    await Trainer(config, hooks=[Keeping("odd", state), Keeping("usual", {"1": "a"})]).run()
    assert read_checkpoint(find_checkpoint(tmp_path)).hook_states["usual"] == {"1": "a"}
    assert "odd" not in read_checkpoint(find_checkpoint(tmp_path)).hook_states
    first, *others = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "a checkpoint is without the state of hook 'odd'" in first.getMessage()
    assert "must be text" in first.getMessage()
    assert first.exc_info
    assert others
    assert not any(record.exc_info for record in others)
    assert "(2 times in a row)" in others[0].getMessage()


async def test_a_transient_error_is_retried_on_the_same_state_with_the_same_key() -> None:
    hook = Flaky(2, retries=2)
    async with running(hook) as engine:
        await publish_epochs(engine, 5)
        await engine.drain(10)
        statistics = engine.statistics().hooks["flaky"]
        assert (statistics.handled, statistics.failed, statistics.retried) == (1, 0, 2)
    keys, attempts, states = zip(*hook.attempts, strict=True)
    assert set(keys) == {"run/flaky/on_epoch_end/0"}
    assert attempts == (0, 1, 2)
    assert all(state is states[0] for state in states)


async def test_deliveries_have_different_keys() -> None:
    hook = Flaky(0)
    async with running(hook) as engine:
        for epoch in (1, 1, 2):
            await publish_epochs(engine, epoch)
            await engine.drain(10)
    assert len({key for key, _, _ in hook.attempts}) == 3


async def test_retries_end_and_the_last_error_counts(caplog: pytest.LogCaptureFixture) -> None:
    hook = Flaky(10, retries=3)
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
        statistics = engine.statistics().hooks["flaky"]
        assert (statistics.handled, statistics.failed, statistics.retried) == (0, 1, 3)
    assert len(hook.attempts) == 4
    assert "attempt 3 failed, trying again: ConnectionError('down')" in caplog.text


async def test_what_is_not_declared_transient_is_not_retried() -> None:
    hook = Flaky(1, lambda: KeyError("bug"), retries=5)
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
    assert len(hook.attempts) == 1


async def test_the_backoff_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("orchestrator.hooks.runner.anyio.sleep", sleep)
    hook = Flaky(3, retries=3, backoff=0.25)
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
    assert slept == [0.25, 0.5, 1.0]


async def test_an_attempt_that_takes_too_long_is_cancelled_and_can_be_retried() -> None:
    ended: list[str] = []

    class Hanging(Hook):
        timeout = 0.01
        retries = 1
        backoff = 0.0
        on_error = "stop"

        async def on_epoch_end(self, state: TrainerState) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(self.delivery.idempotency_key)

    async with running(Hanging()) as engine:
        await publish_epochs(engine, 1)
        assert await engine.drain(10) == ()
        statistics = engine.statistics().hooks["hanging"]
        assert (statistics.failed, statistics.retried) == (1, 1)
        assert isinstance(engine._runners["hanging"].ended_run, TimeoutError)  # pyright: ignore[reportPrivateUsage]
    assert ended == ["run/hanging/on_epoch_end/0"] * 2


async def test_an_error_whose_text_cannot_be_had_is_logged_and_the_hook_lives_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Mute(Exception):
        def __repr__(self) -> str:
            raise ValueError("no text")

        __str__ = __repr__

    def fail(_: object) -> None:
        raise Mute

    hook = AtEpochEnd("hook", act=fail, on_error="log", max_lag=100)
    async with running(hook) as engine:
        await publish_epochs(engine, *range(1, 9))
        assert await engine.drain(10) == ()
        assert engine.statistics().hooks["hook"].failed == 8
        assert engine.failure() is None
    assert "Mute, whose text cannot be had" in caplog.text


async def test_disabling_counts_failures_in_a_row_only() -> None:
    outcomes = iter([0, 0, 1, 0, 0, 0, 1, 1])
    hook = AtEpochEnd("hook", act=lambda _: 1 / next(outcomes) and None, on_error="disable", max_lag=100)
    async with running(hook) as engine:
        await publish_epochs(engine, *range(1, 9))
        assert await engine.drain(10) == ()
        statistics = engine.statistics().hooks["hook"]
        assert statistics.state == "disabled"
        assert (statistics.failed, statistics.handled, statistics.abandoned) == (5, 1, 2)
        assert not engine.listens("on_epoch_end"), "no state need be made for it any more"
        assert engine.failure() is None
    assert len(hook.seen) == 6


async def test_a_publisher_that_a_disabled_hook_held_up_goes_on() -> None:
    hook = AtEpochEnd(
        "hook", act=lambda _: 1 / 0, gated=True, on_error="disable", disable_after=1, overflow="block", max_lag=1
    )
    async with running(hook) as engine, anyio.create_task_group() as tasks:
        await publish_epochs(engine, 1)
        await quiet()
        tasks.start_soon(publish_epochs, engine, 2, 3, 4)
        await quiet()
        assert engine.statistics().hooks["hook"].queue == 2
        hook.open()


async def test_stop_ends_the_run_after_its_epoch_and_makes_it_a_failure() -> None:
    hook = AtEpochEnd("hook", act=fail_at_first, on_error="stop")
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
        assert wishes(engine) == [
            "stop: hook 'hook' failed to handle on_epoch_end of epoch 1: ZeroDivisionError('first')"
        ]
        assert isinstance(engine.failure(), ZeroDivisionError)
        await publish_epochs(engine, 2)
        await engine.drain(10)
    assert hook.epochs == [2], "it still gets what comes until the run has ended, say the final checkpoint"
    assert isinstance(engine.failure(), ZeroDivisionError)


async def test_the_first_failure_is_the_one_that_counts() -> None:
    def fail(state: TrainerState) -> None:
        raise ValueError(f"in epoch {state.epoch}")

    async with running(AtEpochEnd("hook", act=fail, on_error="stop")) as engine:
        await publish_epochs(engine, 1, 2)
        await engine.drain(10)
        assert str(engine.failure()) == "in epoch 1"


async def test_raise_ends_the_run_at_once() -> None:
    hook = AtEpochEnd("hook", act=lambda _: 1 / 0, on_error="raise")
    other = AtEpochEnd("other", gated=True)
    with pytest.raises(ExceptionGroup) as caught:
        async with running(hook, other) as engine:
            await publish_epochs(engine, 1)
            await anyio.sleep_forever()
    (inner,) = caught.value.exceptions
    (failed,) = inner.exceptions if isinstance(inner, ExceptionGroup) else (inner,)
    assert isinstance(failed, HookFailed)
    assert str(failed) == "hook 'hook' failed to handle on_epoch_end of epoch 1"
    assert isinstance(failed.__cause__, ZeroDivisionError)
    assert other.inside == 0


async def test_other_hooks_can_still_be_told_that_one_has_ended_the_run() -> None:
    hook, other = AtEpochEnd("hook", act=lambda _: 1 / 0, on_error="raise"), Everything("other")
    with pytest.raises(ExceptionGroup):
        async with running(hook, other) as engine:
            assert not engine.fatal()
            await publish_epochs(engine, 1)
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                assert engine.fatal()
                with anyio.CancelScope(shield=True):
                    await publish_epochs(engine, 1, event="on_failure")
                    assert await engine.drain(10) == ()
                raise
    assert other.done == [("on_epoch_end", 1), ("on_failure", 1)]


@pytest.mark.parametrize("on_error", ["stop", "raise"])
async def test_a_decisive_hook_that_has_not_finished_makes_the_run_a_failure(on_error: str) -> None:
    hook = AtEpochEnd("hook", gated=True, on_error=on_error)
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await quiet()
    assert "had not finished" in str(engine.failure())


async def test_a_decisive_hook_that_was_cancelled_with_the_run_has_not_failed() -> None:
    hook = AtEpochEnd("hook", gated=True, on_error="stop")
    engine = HookEngine([hook], FakeRun())
    with anyio.CancelScope() as scope:
        async with engine.running():
            await publish_epochs(engine, 1)
            await quiet()
            scope.cancel()
            await anyio.sleep_forever()
    assert engine.failure() is None


async def test_a_return_value_that_is_no_update_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    hook = AtEpochEnd("hook", act=lambda _: {"stop": True})
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
        assert engine.statistics().hooks["hook"].failed == 1
    assert "on_epoch_end must return None or a StateUpdate, not dict" in caplog.text


async def test_a_hook_that_raises_an_exception_group_fails_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    async def act(_: TrainerState) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            raise ValueError("inside")

    hook = AtEpochEnd("hook", act=act)
    async with running(hook) as engine:
        await publish_epochs(engine, 1, 2)
        await engine.drain(10)
        assert engine.statistics().hooks["hook"].failed == 2
    assert "ValueError('inside')" in caplog.text


def cancel_yourself(anyio_backend_name: str) -> list[Callable[[TrainerState], Any]]:
    """Ways to end as if cancelled without anybody having cancelled the engine."""

    async def reraise(_: TrainerState) -> None:
        await carry_a_cancellation_out_of_its_scope()

    async def raise_group(state: TrainerState) -> None:
        try:
            await reraise(state)
        except anyio.get_cancelled_exc_class() as error:
            cancelled = error
        raise BaseExceptionGroup("both", [cancelled, ValueError("and this")])

    ways: list[Callable[[TrainerState], Any]] = [reraise, raise_group]
    if anyio_backend_name == "asyncio":

        async def raise_it(_: TrainerState) -> None:
            raise asyncio.CancelledError

        async def await_a_cancelled_task(_: TrainerState) -> None:
            task = asyncio.ensure_future(asyncio.sleep(100))
            task.cancel()
            await task

        async def cancel_own_task(_: TrainerState) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        ways += [raise_it, await_a_cancelled_task, cancel_own_task]
    return ways


async def test_a_hook_that_ends_as_if_cancelled_has_failed_and_goes_on(
    anyio_backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    ways = cancel_yourself(anyio_backend_name)
    hook = AtEpochEnd("hook", act=lambda state: ways[state.epoch](state) if state.epoch < len(ways) else None)
    async with running(hook) as engine:
        for epoch in range(len(ways) + 1):
            await publish_epochs(engine, epoch)
            assert await engine.drain(10) == ()
        statistics = engine.statistics().hooks["hook"]
        assert (statistics.failed, statistics.handled, statistics.state) == (len(ways), 1, "idle")
        await publish_epochs(engine, 99)
        await quiet()
    assert "ended as if cancelled" in caplog.text
    assert hook.epochs == [len(ways), 99]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hook_that_cancels_its_task_and_swallows_it_or_returns_harms_nobody() -> None:
    async def swallow(_: TrainerState) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return

    async def leave_behind(_: TrainerState) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    for way in (swallow, leave_behind):
        hook = AtEpochEnd("hook", act=way, on_error="stop", drain=False)
        async with running(hook) as engine:
            for epoch in range(3):
                await publish_epochs(engine, epoch)
                await quiet()
            assert engine.statistics().hooks["hook"].state == "idle"
            hook.gated = True
            await publish_epochs(engine, 3)
            await quiet()
        assert len(hook.seen) == 4
        assert engine.statistics().hooks["hook"].state == "ended"
        assert engine.failure() is None, "the end of the run is not taken for one more cancellation by the hook"


async def test_a_hook_that_hangs_or_spins_is_ended_with_the_run() -> None:
    async def spin(_: TrainerState) -> None:
        async def turn() -> None:
            while True:
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(turn)

    hanging = AtEpochEnd("hanging", act=lambda _: anyio.sleep_forever())
    spinning = AtEpochEnd("spinning", act=spin)
    other = AtEpochEnd("other", max_lag=100)
    async with running(hanging, spinning, other) as engine:
        await publish_epochs(engine, *range(1, 11))
        assert await engine.drain(0.05) == ("hanging", "spinning")
        assert len(other.epochs) == 10
    assert (hanging.inside, spinning.inside) == (0, 0)


async def test_an_error_in_the_clean_up_of_a_cancelled_callback_is_logged_and_ends_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def act(_: TrainerState) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("in the clean-up")

    async def act_in_group(_: TrainerState) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(act, TrainerState())

    async with running(AtEpochEnd("a", act=act), AtEpochEnd("b", act=act_in_group)) as engine:
        await publish_epochs(engine, 1)
        await quiet()
    assert caplog.text.count("in the clean-up") >= 2
    assert "hook 'a' failed to handle on_epoch_end of epoch 1: ValueError('in the clean-up')" in caplog.text
    assert engine.statistics().hooks["a"].failed == 1


async def test_a_hook_that_would_end_the_program_ends_its_run_in_order_instead() -> None:
    def leave(_: TrainerState) -> None:
        raise SystemExit(3)

    hook, other = AtEpochEnd("hook", act=leave), AtEpochEnd("other")
    async with running(hook, other) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
        assert wishes(engine) == ["stop: hook 'hook' failed to handle on_epoch_end of epoch 1: SystemExit(3)"]
        assert isinstance(engine.failure(), SystemExit)
    assert other.epochs == [1]


async def test_asking_for_the_delivery_outside_of_one_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="only inside a callback"):
        _ = AtEpochEnd("hook").delivery


async def test_a_failing_hook_that_asks_for_a_stop_does_not_hide_who_asked() -> None:
    hook = AtEpochEnd("hook", act=lambda _: StateUpdate(stop=True, save_now=True))
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
        assert wishes(engine) == ["stop: hook 'hook' asked for it", "checkpoint"]
        assert engine.failure() is None
