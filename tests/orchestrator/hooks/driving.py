"""What the tests of the hook engine share: a run to look at, a hook to steer, and a way to wait for quiet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import trio.testing

from orchestrator.hooks.engine import HookEngine
from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.statistics import HookStatistics
from state.trainer_state import TrainerState

DEADLINE = 20.0
"""Seconds after which a test that waits has failed, on a machine with much else to do."""


class FakeRun:
    """Remembers what hooks ask of the run."""

    run_id = "run"
    run_dir: Path | None = None

    def __init__(self) -> None:
        self.wishes: list[str] = []

    def stop(self, reason: str = "") -> None:
        self.wishes.append(f"stop: {reason}")

    def stop_now(self, reason: str = "") -> None:
        self.wishes.append(f"stop now: {reason}")

    def pause(self) -> None:
        self.wishes.append("pause")

    def resume(self) -> None:
        self.wishes.append("resume")

    def request_checkpoint(self) -> None:
        self.wishes.append("checkpoint")

    learning_rate_scale = 1.0

    def scale_learning_rate(self, factor: float) -> None:
        self.learning_rate_scale = factor

    def start_worker(self, name: str, factory: Any, *args: object) -> Any:
        raise NotImplementedError

    async def open_worker(self, name: str, factory: Any, *args: object) -> Any:
        raise NotImplementedError

    def hook_statistics(self) -> Mapping[str, HookStatistics]:
        return {}


def make_engine(hooks: Sequence[Hook], **options: Any) -> HookEngine:
    return HookEngine(hooks, FakeRun(), **options)


@asynccontextmanager
async def running(*hooks: Hook, **options: Any) -> AsyncGenerator[HookEngine]:
    """A running engine; everything inside must happen before the deadline."""
    engine = make_engine(hooks, **options)
    with anyio.fail_after(DEADLINE):
        async with engine.running():
            yield engine


class Steered(Hook):
    """Notes what it is given, and waits at a gate where it is told to.

    `seen` are (event, epoch) as handling begins, `done` as it ends well. `act` says what to do with a state.
    """

    def __init__(
        self, name: str, *, gated: bool = False, act: Callable[[TrainerState], Any] | None = None, **settings: Any
    ):
        self.name = name
        for setting, value in settings.items():
            assert hasattr(Hook, setting), setting
            setattr(self, setting, value)
        self.gated = gated
        self.act = act
        self.seen: list[tuple[str, int]] = []
        self.done: list[tuple[str, int]] = []
        self.states: list[TrainerState] = []
        self.inside = 0
        self.most_inside = 0
        self._gate = anyio.Event()

    def open(self) -> None:
        """Let the present callback go on."""
        self._gate.set()
        self._gate = anyio.Event()

    def open_for_good(self) -> None:
        self.gated = False
        self.open()

    async def note(self, event: str, state: TrainerState) -> StateUpdate | None:
        self.seen.append((event, state.epoch))
        self.states.append(state)
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            if self.gated:
                await self._gate.wait()
            update = None if self.act is None else self.act(state)
            if hasattr(update, "__await__"):
                update = await update
        finally:
            self.inside -= 1
        self.done.append((event, state.epoch))
        return update

    @property
    def epochs(self) -> list[int]:
        return [epoch for _, epoch in self.done]


class AtEpochEnd(Steered):
    async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
        return await self.note("on_epoch_end", state)


class AtCommit(Steered):
    async def on_checkpoint_committed(self, state: TrainerState) -> StateUpdate | None:
        return await self.note("on_checkpoint_committed", state)


class Everything(AtEpochEnd):
    async def on_new_training_run(self, state: TrainerState) -> StateUpdate | None:
        return await self.note("on_new_training_run", state)

    async def on_rollout_start(self, state: TrainerState) -> StateUpdate | None:
        return await self.note("on_rollout_start", state)

    async def on_rollout_end(self, state: TrainerState) -> StateUpdate | None:
        return await self.note("on_rollout_end", state)

    async def on_train_phase_end(self, state: TrainerState) -> StateUpdate | None:
        return await self.note("on_train_phase_end", state)

    async def on_checkpoint_committed(self, state: TrainerState) -> StateUpdate | None:
        return await self.note("on_checkpoint_committed", state)

    async def on_training_end(self, state: TrainerState) -> StateUpdate | None:
        return await self.note("on_training_end", state)

    async def on_failure(self, state: TrainerState) -> StateUpdate | None:
        return await self.note("on_failure", state)


async def publish_epochs(engine: HookEngine, *epochs: int, event: str = "on_epoch_end") -> None:
    for epoch in epochs:
        await engine.publish(event, TrainerState(epoch=epoch, policy_version=epoch, agent_step=100 * epoch))


async def quiet() -> None:
    """Wait until no task has anything to do but wait."""
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        await trio.testing.wait_all_tasks_blocked()
        return
    ready: Any = asyncio.get_running_loop()._ready  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    for _ in range(1000):
        await asyncio.sleep(0)
        if not ready:
            return
    raise AssertionError("the event loop does not come to rest")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens outside the event loop."""
    with anyio.fail_after(DEADLINE):
        while not condition():
            await anyio.sleep(0.001)


async def carry_a_cancellation_out_of_its_scope() -> None:
    caught: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as error:
            caught.append(error)
            raise
    raise caught[0]
