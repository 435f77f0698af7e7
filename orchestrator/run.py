"""A run in progress: what an embedding program and the hooks see of it, and request of it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from orchestrator.hooks.engine import HookEngine
from orchestrator.hooks.included.trace import TraceHook
from orchestrator.loop.control import RunControl
from orchestrator.loop.newest_state import NewestState
from orchestrator.loop.patience import Patience
from orchestrator.snapshots.checkpoint_files import checkpoint_content
from orchestrator.snapshots.training_snapshot import TrainingSnapshots
from orchestrator.workers.event_loop import clock
from orchestrator.workers.interrupt import Interrupt
from orchestrator.workers.worker import close_workers, open_worker, start_worker
from state.error import OrchestratorError
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.hooks.engine import EngineStatistics
    from orchestrator.hooks.hook import Hook
    from orchestrator.hooks.statistics import HookStatistics
    from orchestrator.snapshots.checkpoint_files import CheckpointContent
    from orchestrator.workers.worker import Worker
    from state.eval_rewards import EvalRewardSummary


ANSWER_SECONDS = 5.0
"""What a worker has at least for its present step or minibatch, or to start, when the run is to end now."""


class RunCancelled(OrchestratorError, RuntimeError):
    """Raised in those that wait for a run's result when the run was cancelled and they were not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """What a run is doing; `engine` tells how each hook keeps up."""

    epoch: int
    agent_step: int
    paused: bool
    stop_requested: str
    engine: EngineStatistics


class Run:
    """A run in progress: watch it, pause it, stop it. Made by `Trainer.start()`."""

    def __init__(self, config: TrainerConfig, hooks: Sequence[Hook], first_epoch: int = 0) -> None:
        self.run_id = uuid.uuid4().hex[:12]
        self.run_dir: Path | None = config.run_dir
        self._drain_seconds = 60.0
        self._drain_scope: anyio.CancelScope | None = None
        self.config = config
        self._clock = clock(anyio.lowlevel.current_token())
        self.control = RunControl(Interrupt(), self._hurry)
        self.patience = Patience()
        self.engine = HookEngine(hooks, self)
        self.trace = next((hook.trace for hook in hooks if isinstance(hook, TraceHook)), None)
        if self.trace is not None:
            self.engine.observe(self.trace.hook)
        self._first_epoch = first_epoch
        self.newest = NewestState(self.engine, TrainerState(epoch=first_epoch))
        self.snapshots = TrainingSnapshots()
        self._workers: list[Worker] = []
        self._workers_closed = False
        self._ended = anyio.Event()
        self.error: BaseException | None = None
        """What the run failed with, once it has ended."""

    def __repr__(self) -> str:
        return f"<Run {self.run_id}: epoch {self.state.epoch}, {self.control!r}>"

    @property
    def state(self) -> TrainerState:
        """The newest state of a completed epoch."""
        return self.newest.state

    def states(self) -> States:
        """The state after each epoch, up to the last. A slow reader misses states; it never holds up the run."""
        return States(self)

    async def next_state(self, seen: TrainerState | None) -> TrainerState | None:
        """The newest state of a completed epoch as soon as it is not `seen`; None after the last."""
        while self.state.epoch == (self._first_epoch if seen is None else seen.epoch):
            if self._ended.is_set():
                return None
            await self.newest.news()
        return self.state

    async def result(self) -> TrainerState:
        """Wait for the end: the last state, or what the run failed with."""
        await self._ended.wait()
        if isinstance(self.error, Exception):
            raise self.error
        if self.error is not None:
            ends = isinstance(self.error, (SystemExit, KeyboardInterrupt))
            raise RunCancelled(f"the run was {f'ended by {self.error!r}' if ends else 'cancelled'}") from self.error
        return self.state

    def pause(self) -> None:
        """Begin no further epoch until `resume`; what has been collected is still learned from."""
        self.control.pause()

    def resume(self) -> None:
        self.control.resume()

    def stop(self, reason: str = "") -> None:
        """Finish the present epoch and end the run."""
        self.control.stop(reason)

    def stop_now(self, reason: str = "") -> None:
        """End the run after the present minibatch: the epoch that is being learned ends there."""
        self.control.stop_now(reason)

    def request_checkpoint(self) -> None:
        """Take a checkpoint at the end of the present epoch; while the run is paused, of the last one."""
        self.control.request_checkpoint()

    @property
    def learning_rate_scale(self) -> float:
        """What the scheduled learning rate is multiplied with; a checkpoint keeps it."""
        return self.control.learning_rate_scale

    def scale_learning_rate(self, factor: float) -> None:
        """Set `learning_rate_scale`, for the epochs that are learned from now on.

        Raises ValueError for what is negative or not finite.
        """
        self.control.scale_learning_rate(factor)

    def start_worker(
        self, name: str, factory: Callable[..., object], *args: object
    ) -> AbstractAsyncContextManager[Worker]:
        """A worker on the run's backend, for a hook's heavy computation."""
        return start_worker(self.config.collection.backend, name, factory, *args)

    async def open_worker(self, name: str, factory: Callable[..., object], *args: object) -> Worker:
        """As `start_worker`, for a worker that lives until the hook closes it, or as long as the run.

        Raises RuntimeError where the run has ended.
        """
        worker = await open_worker(self.config.collection.backend, name, factory, *args)
        self._workers = [*(one for one in self._workers if not one.ended), worker]
        if self._workers_closed:
            await self.close_workers()
            raise RuntimeError(f"the worker {name!r} was opened after the end of its run, and is closed again")
        worker.observe = None if self.trace is None else self.trace.worker_call
        return worker

    def hook_statistics(self) -> Mapping[str, HookStatistics]:
        """How each hook keeps up, by name."""
        return self.engine.statistics().hooks

    def eval_scores(self) -> Mapping[int, EvalRewardSummary]:
        """As `RunContext` says."""
        return self.engine.eval_scores()

    def epochs_in_hand(self) -> frozenset[int]:
        """As `RunContext` says."""
        return self.engine.epochs_in_hand()

    def checkpoint_content(self, state: TrainerState) -> CheckpointContent:
        """What a checkpoint of `state`, which has a policy, is made of; see `RunContext`."""
        return checkpoint_content(state, self.snapshots.get(state.epoch), self.config, self.engine.hook_states())

    def statistics(self) -> RunStatistics:
        return RunStatistics(
            epoch=self.state.epoch,
            agent_step=self.state.agent_step,
            paused=self.control.paused,
            stop_requested=self.control.stop_requested,
            engine=self.engine.statistics(),
        )

    def limit_drain(self, seconds: float) -> None:
        """Give hooks this long to finish after the training, also when it has ended already. The default is 60."""
        self._drain_seconds = seconds
        self.control.call_soon(self._shorten_drain)

    def _shorten_drain(self) -> None:
        if self._drain_scope is not None:
            self._drain_scope.deadline = min(self._drain_scope.deadline, self._clock() + self._drain_seconds)

    def _hurry(self) -> None:
        """A run that is to end now waits neither for hooks that hold it up nor for workers that hang."""
        self.engine.unblock()
        self.patience.limit(ANSWER_SECONDS, self._clock())

    def drain_scope(self, deadline: float | None = None) -> anyio.CancelScope:
        """For the trainer: a scope that ends when hooks have had their time."""
        now = anyio.current_time()
        self._drain_scope = anyio.CancelScope(
            deadline=now + self._drain_seconds
            if deadline is None
            else max(deadline, now + max(1.0, min(5.0, self._drain_seconds / 2)))
        )
        return self._drain_scope

    async def close_workers(self) -> None:
        """For the trainer: end the workers that hooks have opened and not closed."""
        self._workers_closed = True
        await close_workers(self._workers, grace=0.5)

    def end(self, error: BaseException | None) -> None:
        """For the trainer: the run is over."""
        self.error = error
        self.snapshots.keep_only(())
        self._ended.set()
        self.newest.wake()


class States:
    """Iterates over the newest states of a run. (Not a generator: leaving one half-way needs closing.)"""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen: TrainerState | None = None

    def __aiter__(self) -> States:
        return self

    async def __anext__(self) -> TrainerState:
        state = await self._run.next_state(self._seen)
        if state is None:
            raise StopAsyncIteration
        self._seen = state
        return state
