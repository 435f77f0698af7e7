from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest

from orchestrator.hooks.engine import HookConfigurationError, HookEngine
from orchestrator.hooks.hook import Hook
from orchestrator.hooks.runner import HookFailed
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import AtEpochEnd, FakeRun, publish_epochs, quiet, running

pytestmark = pytest.mark.anyio


class Resourceful(AtEpochEnd):
    """Notes the order of things; `leave` and `enter` can be made to fail or to take forever."""

    def __init__(self, name: str = "resourceful", enter: str = "", leave: str = "", **settings: object) -> None:
        super().__init__(name, **settings)
        self.enter = enter
        self.leave = leave
        self.notes: list[str] = []

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        self.notes.append("entering")
        await self._do(self.enter)
        self.notes.append("entered")
        try:
            yield
        finally:
            self.notes.append("leaving")
            await self._do(self.leave)
            self.notes.append("left")

    async def _do(self, what: str) -> None:
        await anyio.lowlevel.checkpoint()
        if what == "fail":
            raise OSError("no such luck")
        if what == "hang":
            await anyio.sleep_forever()

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.notes.append(f"epoch {state.epoch}")
        try:
            await super().on_epoch_end(state)
        except anyio.get_cancelled_exc_class():
            self.notes.append("cancelled")
            raise


async def test_resources_are_entered_before_the_first_event_and_left_after_the_last() -> None:
    hook = Resourceful()
    async with running(hook) as engine:
        await publish_epochs(engine, 1, 2)
        await engine.drain(10)
    assert hook.notes == ["entering", "entered", "epoch 1", "epoch 2", "leaving", "left"]


async def test_resources_are_left_in_order_when_the_run_fails() -> None:
    hook = Resourceful(gated=True)
    with pytest.raises(ExceptionGroup) as caught:
        async with running(hook) as engine:
            await publish_epochs(engine, 1)
            await quiet()
            raise ValueError("the training failed")
    assert caught.group_contains(ValueError, match="the training failed")
    assert hook.notes == ["entering", "entered", "epoch 1", "cancelled", "leaving", "left"]


async def test_resources_are_left_in_order_when_the_run_is_cancelled() -> None:
    hook = Resourceful(gated=True)
    with anyio.CancelScope() as scope:
        async with running(hook) as engine:
            await publish_epochs(engine, 1)
            await quiet()
            scope.cancel()
            await anyio.sleep_forever()
    assert hook.notes == ["entering", "entered", "epoch 1", "cancelled", "leaving", "left"]


async def test_resources_are_left_when_the_hook_raises_out_of_the_run() -> None:
    class Swallowing(Resourceful):
        @asynccontextmanager
        async def resources(self) -> AsyncGenerator[None]:
            async with super().resources():
                try:
                    yield
                except Exception:
                    self.notes.append("swallowed")

    hook = Swallowing(on_error="raise", act=lambda _: 1 / 0)
    with pytest.raises(ExceptionGroup) as caught:
        async with running(hook) as engine:
            await publish_epochs(engine, 1)
            await anyio.sleep_forever()
    assert caught.group_contains(HookFailed)
    assert hook.notes == ["entering", "entered", "epoch 1", "leaving", "left"]


async def test_a_disabled_hook_leaves_its_resources_at_once() -> None:
    hook = Resourceful(on_error="disable", disable_after=1, act=lambda _: 1 / 0)
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        assert hook.notes[-1] == "left"


async def test_a_run_that_ends_before_it_began_needs_no_resources() -> None:
    hook = Resourceful()
    async with running(hook):
        pass
    assert hook.notes == []


async def test_a_hook_without_its_resources_gets_no_events(caplog: pytest.LogCaptureFixture) -> None:
    hook, late = Resourceful(enter="fail"), AtEpochEnd("late", after=("resourceful",))
    async with running(hook, late) as engine:
        await publish_epochs(engine, 1)
        assert await engine.drain(10) == ()
        await publish_epochs(engine, 2)
        assert await engine.drain(10) == ()
        statistics = engine.statistics().hooks["resourceful"]
        assert (statistics.state, statistics.delivered, statistics.abandoned) == ("failed", 1, 1)
    assert hook.notes == ["entering"]
    assert late.epochs == [1, 2]
    assert "hook 'resourceful' failed to enter its resources: OSError('no such luck')" in caplog.text


async def test_resources_that_cannot_be_entered_stop_the_run_where_the_hook_is_decisive() -> None:
    async with running(Resourceful(enter="fail", on_error="stop")) as engine:
        await quiet()
        assert isinstance(engine.run, FakeRun)
        assert engine.run.wishes == ["stop: hook 'resourceful' failed to enter its resources: OSError('no such luck')"]
        assert isinstance(engine.failure(), OSError)


async def test_what_is_no_context_is_a_failure_of_the_hook(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Hook):
        def resources(self) -> AbstractAsyncContextManager[object]:
            return open  # type: ignore[return-value]

        async def on_epoch_end(self, state: TrainerState) -> None: ...

    async with running(Wrong()):
        await quiet()
    assert "hook 'wrong' failed to enter its resources: TypeError" in caplog.text


async def test_resources_that_cannot_be_left_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Resourceful(leave="fail"), AtEpochEnd("other")) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
    assert "hook 'resourceful' failed to leave its resources: OSError('no such luck')" in caplog.text
    async with running(Resourceful(leave="fail", on_error="stop")) as engine:
        await quiet()
    assert isinstance(engine.failure(), OSError)


@pytest.mark.parametrize("where", ["enter", "leave"])
async def test_resources_that_hang_hold_up_the_end_no_longer_than_the_grace(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Resourceful(**{where: "hang"})
    async with running(hook, grace=0.02) as engine:
        await publish_epochs(engine, 1)
        await quiet()
    assert hook.notes[-1] == {"enter": "entering", "leave": "leaving"}[where]
    assert f"hook 'resourceful' was cancelled: it took too long to {where} its resources" in caplog.text


class WithTasks(AtEpochEnd):
    """Resources that are a task group, which callbacks start tasks in."""

    failing = False

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as self.tasks:
            yield
            self.tasks.cancel_scope.cancel()

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.tasks.start_soon(self._beside)
        await super().on_epoch_end(state)

    async def _beside(self) -> None:
        if self.failing:
            raise ValueError("beside")
        await anyio.sleep_forever()


async def test_resources_can_be_a_task_group_for_the_hooks_own_tasks() -> None:
    hook = WithTasks("tasks")
    async with running(hook) as engine:
        await publish_epochs(engine, 1, 2)
        assert await engine.drain(10) == ()
    assert hook.epochs == [1, 2]


@pytest.mark.parametrize("gated", [False, True])
async def test_a_failing_task_of_the_resources_ends_the_hook_and_nobody_else(
    gated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hook, other = WithTasks("tasks", gated=gated), AtEpochEnd("other", after=("tasks",))
    hook.failing = True
    async with running(hook, other) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        await publish_epochs(engine, 2)
        assert await engine.drain(10) == ()
        assert engine.statistics().hooks["tasks"].state == "failed"
    assert other.epochs == [1, 2]
    assert "hook 'tasks' failed to finish its work" in caplog.text
    assert "ValueError: beside" in caplog.text


async def test_a_task_group_that_nobody_cancels_is_ended_after_the_grace() -> None:
    class Forgetful(WithTasks):
        @asynccontextmanager
        async def resources(self) -> AsyncGenerator[None]:
            async with anyio.create_task_group() as self.tasks:
                yield

    hook = Forgetful("tasks")
    async with running(hook, grace=0.02) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
    assert hook.epochs == [1]


async def test_a_hook_can_work_in_one_run_at_a_time_and_in_one_after_the_other() -> None:
    hook = Resourceful()
    for _ in range(2):
        async with running(hook) as engine:
            await publish_epochs(engine, 1)
            await engine.drain(10)
            with pytest.raises(HookConfigurationError, match="at work in another run"):
                async with HookEngine([hook], FakeRun()).running():
                    pass
    assert hook.notes == ["entering", "entered", "epoch 1", "leaving", "left"] * 2
