"""What a run consists of, for the trainer and its loop: control, hooks, newest state, snapshots, workers, its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel

from orchestrator.hooks.engine import HookEngine
from orchestrator.hooks.included.trace import TraceHook
from orchestrator.loop.control import RunControl
from orchestrator.loop.newest_state import NewestState
from orchestrator.loop.patience import Patience
from orchestrator.loop.statistics import LoopStatistics
from orchestrator.snapshots.training_snapshot import TrainingSnapshots
from orchestrator.workers.event_loop import clock
from orchestrator.workers.interrupt import Interrupt
from orchestrator.workers.worker import close_workers, open_worker
from state.frozen_mapping import FrozenMapping
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.hooks.hook import Hook, RunContext
    from orchestrator.workers.worker import Worker, WorkerStatistics

ANSWER_SECONDS = 5.0
"""What a worker has at least for its present step or minibatch, or to start, when the run is to end now."""


class RunParts:
    """Made inside the event loop of the run; `context` is what hooks see of it."""

    def __init__(self, config: TrainerConfig, hooks: Sequence[Hook], context: RunContext, first_epoch: int) -> None:
        self._backend: Literal["process", "inline"] = config.collection.backend
        self.drain_seconds = config.drain_timeout
        """What hooks have after the training."""
        self._drain_scope: anyio.CancelScope | None = None
        self._clock = clock(anyio.lowlevel.current_token())
        self.control = RunControl(Interrupt(), self._hurry)
        self.patience = Patience()
        self.engine = HookEngine(hooks, context)
        self.trace = next((hook.trace for hook in hooks if isinstance(hook, TraceHook)), None)
        if self.trace is not None:
            self.engine.observe(self.trace.hook)
        self.newest = NewestState(self.engine, TrainerState(epoch=first_epoch))
        self.snapshots = TrainingSnapshots()
        self.recorded_spaces: Mapping[str, Any] = {}
        """The environment's, for checkpoints; known once the workers have started."""
        self.training = False
        """Whether the workers have started, and the loop with them."""
        self.loop_statistics: Callable[[], LoopStatistics] = LoopStatistics
        """The loop's, once there is one; as they were at the end of the run after it."""
        self._workers: list[Worker] = []
        self._workers_closed = False
        self.ended = anyio.Event()
        self.error: BaseException | None = None
        """What the run failed with, once it has ended."""

    async def open_worker(self, name: str, factory: Callable[..., object], *args: object) -> Worker:
        """A worker that lives until it is closed, or as long as the run."""
        worker = await open_worker(self._backend, name, factory, *args)
        self._workers = [*(one for one in self._workers if not one.ended), worker]
        if self._workers_closed:
            await self.close_workers()
            raise RuntimeError(f"the worker {name!r} was opened after the end of its run, and is closed again")
        worker.observe = None if self.trace is None else self.trace.worker_call
        return worker

    def worker_statistics(self) -> FrozenMapping[str, WorkerStatistics]:
        """Of the loop's workers, and of those that hooks have opened and not closed."""
        of_hooks = {one.name: one.statistics() for one in self._workers if not one.ended}
        return FrozenMapping(of_hooks | dict(self.loop_statistics().workers))

    def limit_drain(self, seconds: float) -> None:
        """Give hooks this long to finish after the training, also when it has ended already."""
        self.drain_seconds = seconds
        self.control.call_soon(self._shorten_drain)

    def _shorten_drain(self) -> None:
        if self._drain_scope is not None:
            self._drain_scope.deadline = min(self._drain_scope.deadline, self._clock() + self.drain_seconds)

    def _hurry(self) -> None:
        """A run that is to end now waits neither for hooks that hold it up nor for workers that hang."""
        self.engine.unblock()
        self.patience.limit(ANSWER_SECONDS, self._clock())

    def drain_scope(self, deadline: float | None = None) -> anyio.CancelScope:
        """A scope that ends when hooks have had their time."""
        now = anyio.current_time()
        self._drain_scope = anyio.CancelScope(
            deadline=now + self.drain_seconds
            if deadline is None
            else max(deadline, now + max(1.0, min(5.0, self.drain_seconds / 2)))
        )
        return self._drain_scope

    async def close_workers(self) -> None:
        """End the workers that hooks have opened and not closed."""
        self._workers_closed = True
        await close_workers(self._workers, grace=0.5)

    def end(self, error: BaseException | None) -> None:
        """The run is over."""
        self.error = error
        last = self.loop_statistics()
        self.loop_statistics = lambda: last  # without the loop, whose memory can go
        self.snapshots.keep_only(())
        self.ended.set()
        self.newest.wake()
