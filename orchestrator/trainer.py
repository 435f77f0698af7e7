"""Training as something to await: the trainer, and the handle of a run that is going on."""

from __future__ import annotations

import logging
import uuid
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from losses import LossSet
from orchestrator.config import TrainerConfig
from orchestrator.config_check import check_config, check_losses, check_minibatches
from orchestrator.config_file import replace_config, write_config
from orchestrator.control import RunControl
from orchestrator.crew import crew
from orchestrator.default_hooks import default_hooks
from orchestrator.default_losses import default_losses
from orchestrator.hooks.engine import HookEngine, check_hooks
from orchestrator.hooks.function_hook import function_hook
from orchestrator.hooks.runner import HookFailed
from orchestrator.hooks.trace import TraceHook
from orchestrator.resume import ResumeSource, check_resume, find_resume_source
from orchestrator.training_capture import Captures, checkpoint_content, read_checkpoint
from orchestrator.training_loop import TrainingLoop
from orchestrator.wakeup import Wakeup
from orchestrator.workers import Interrupt, start_worker
from orchestrator.workers.worker import open_worker
from state.stopwatch import Stopwatch
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from losses import Loss
    from orchestrator.hooks.engine import EngineStatistics
    from orchestrator.hooks.hook import Hook
    from orchestrator.hooks.runner import HookStatistics
    from orchestrator.training_capture import CheckpointContent, ResumePoint
    from orchestrator.workers import Worker

_log = logging.getLogger("orchestrator")


FATAL_GRACE = 5.0
"""Seconds that hooks have for `on_failure` when one of them has ended the run at once."""


class RunCancelled(RuntimeError):
    """What those who wait for a run's result get when the run was cancelled and they were not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """What a run is doing; `engine` tells how each hook keeps up."""

    epoch: int
    agent_step: int
    paused: bool
    stop_requested: str
    engine: EngineStatistics


class Run:
    """A run that is going on: watch it, pause it, stop it. Made by `Trainer.start()`."""

    def __init__(self, config: TrainerConfig, hooks: Sequence[Hook], first_epoch: int = 0) -> None:
        self.run_id = uuid.uuid4().hex[:12]
        self.run_dir: Path | None = config.run_dir
        self._drain_seconds = 60.0
        self._drain_scope: anyio.CancelScope | None = None
        self.config = config
        self.control = RunControl(Interrupt())
        self.engine = HookEngine(hooks, self)
        self.trace = next((hook.trace for hook in hooks if isinstance(hook, TraceHook)), None)
        if self.trace is not None:
            self.engine.observe(self.trace.hook)
        self._first_epoch = first_epoch
        self._state = TrainerState(epoch=first_epoch)
        self.captures = Captures()
        self._changed = Wakeup()
        self._ended = anyio.Event()
        self.error: BaseException | None = None
        """What the run failed with, once it has ended."""

    def __repr__(self) -> str:
        return f"<Run {self.run_id}: epoch {self._state.epoch}, {self.control!r}>"

    @property
    def state(self) -> TrainerState:
        """The newest state of a completed epoch."""
        return self._state

    def states(self) -> States:
        """The state after each epoch, up to the last. A slow reader misses states; it never holds up the run."""
        return States(self)

    async def next_state(self, seen: TrainerState | None) -> TrainerState | None:
        """The newest state of a completed epoch as soon as it is not `seen`; None after the last."""
        while self._state.epoch == (self._first_epoch if seen is None else seen.epoch):
            if self._ended.is_set():
                return None
            await self._changed.wait()
        return self._state

    async def result(self) -> TrainerState:
        """Wait for the end: the last state, or what the run failed with."""
        await self._ended.wait()
        if isinstance(self.error, Exception):
            raise self.error
        if self.error is not None:
            raise RunCancelled("the run was cancelled") from self.error
        return self._state

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
        """Take a checkpoint at the end of the present epoch."""
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
        """As `start_worker`, for a hook that closes the worker itself."""
        worker = await open_worker(self.config.collection.backend, name, factory, *args)
        worker.observe = None if self.trace is None else self.trace.worker_call
        return worker

    def hook_statistics(self) -> Mapping[str, HookStatistics]:
        """How each hook keeps up, by name."""
        return self.engine.statistics().hooks

    def checkpoint_content(self, state: TrainerState) -> CheckpointContent:
        """What a checkpoint of `state`, which has a policy, is made of; see `RunContext`."""
        return checkpoint_content(state, self.captures.get(state.epoch), self.config, self.engine.hook_states())

    def statistics(self) -> RunStatistics:
        return RunStatistics(
            epoch=self._state.epoch,
            agent_step=self._state.agent_step,
            paused=self.control.paused,
            stop_requested=self.control.stop_requested,
            engine=self.engine.statistics(),
        )

    def limit_drain(self, seconds: float) -> None:
        """Give hooks this long to finish after the training, also when it has ended already. The default is 60."""
        self._drain_seconds = seconds
        if self._drain_scope is not None:
            self._drain_scope.deadline = min(self._drain_scope.deadline, anyio.current_time() + seconds)

    def drain_scope(self, deadline: float | None = None) -> anyio.CancelScope:
        """For the trainer: a scope that ends when hooks have had their time."""
        now = anyio.current_time()
        self._drain_scope = anyio.CancelScope(
            deadline=now + self._drain_seconds if deadline is None else max(deadline, now + 1.0)
        )
        return self._drain_scope

    def take_state(self, state: TrainerState) -> None:
        """For the trainer: a new state is there."""
        self._state = state
        self._changed.set()

    def end(self, error: BaseException | None) -> None:
        """For the trainer: the run is over."""
        self.error = error
        self._ended.set()
        self._changed.set()


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


class Trainer:
    """Trains a policy as `config` says; `hooks` run beside it, `losses` replace the configured ones.

    `resume` is a run's folder, a checkpoint, or the URI of one: the training goes on there, by default with the
    recorded settings and in the folder it began in. The checkpoint is found and read while the trainer is made, which
    blocks: a service does that in a thread, or gives what `find_resume_source` has found there.

    Raises CheckpointError, ConfigurationError, HookConfigurationError or ValueError for what can be known to be wrong
    before the start.
    """

    def __init__(
        self,
        config: TrainerConfig | None = None,
        *,
        hooks: Sequence[Hook] = (),
        losses: Sequence[Loss] | None = None,
        resume: ResumeSource | Path | str | None = None,
    ) -> None:
        self._source = find_resume_source(resume) if isinstance(resume, (Path, str)) else resume
        self.config = config or (self._source.config if self._source is not None else TrainerConfig())
        self.losses = tuple(losses) if losses is not None else None
        resumed = None if self._source is None else self._source.checkpoint.path
        self.hooks: list[Hook] = [*default_hooks(self.config, resumed, hooks), *hooks]
        self._run: Run | None = None
        check_hooks(self.hooks)

    def __repr__(self) -> str:
        return f"<Trainer of {self.config.environment!r}: {self._run!r}>"

    async def run(self) -> TrainerState:
        """Train to the end; the last state. Cancelling this ends all workers before it returns."""
        async with self.start() as run:
            return await run.result()

    @asynccontextmanager
    async def start(self) -> AsyncGenerator[Run]:
        """Train in the background while the context is entered; leaving it waits for the run's end.

        An error in the context's body, or cancellation, ends the run at once.
        """
        # Checking imports the environment's package, which may take a while.
        losses = await anyio.to_thread.run_sync(self._checked_losses)
        source = self._source
        resume = None if source is None else await anyio.to_thread.run_sync(read_checkpoint, source.checkpoint)
        run = self._run = Run(self.config, self.hooks, 0 if resume is None else resume.state.epoch)
        error: BaseException | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._train, run, losses, resume, name="train")
                yield run
        except BaseExceptionGroup as group:
            error = only_error(group)
        error = error or run.error
        if error is not None:  # outside of the handler, which would change the error's cause or context
            raise error

    def _checked_losses(self) -> Sequence[Loss]:
        if self._source is not None:
            check_resume(self._source, self.config)
        check_config(self.config, losses=self.losses, resuming=self._goes_on)
        losses = self.losses if self.losses is not None else default_losses(self.config)
        check_losses(losses, self.config.staleness)
        if LossSet(losses).needs_segments:  # which also finds names given twice and losses that are none
            check_minibatches(self.config, ["a loss needs whole segments"])
        return losses

    @property
    def _goes_on(self) -> bool:
        """Whether a resumed run goes on in its own folder."""
        return self._source is not None and self._source.goes_on_in(self.config.run_dir)

    @property
    def current_run(self) -> Run:
        """The run that was started last. Raises RuntimeError before the first."""
        if self._run is None:
            raise RuntimeError("the trainer has not been started: use `async with trainer.start() as run:`")
        return self._run

    def states(self) -> States:
        """As `Run.states`, of the run that was started last."""
        return self.current_run.states()

    def statistics(self) -> RunStatistics:
        """As `Run.statistics`, of the run that was started last."""
        return self.current_run.statistics()

    async def _train(self, run: Run, losses: Sequence[Loss], resume: ResumePoint | None) -> None:
        error: BaseException | None = None
        try:
            if resume is not None:
                run.engine.load_hook_states(resume.hook_states)
            async with run.engine.running():
                await self._train_with_hooks(run, losses, resume)
            failure = run.engine.failure()
            if failure is not None:
                raise HookFailed(f"the run was stopped: {run.control.reason}") from failure
        except Exception as caught:
            error = only_error(caught) if isinstance(caught, BaseExceptionGroup) else caught
        except BaseException as caught:
            error = caught
            raise
        finally:
            run.end(error)

    async def _train_with_hooks(self, run: Run, losses: Sequence[Loss], resume: ResumePoint | None) -> None:
        try:
            async with crew(self.config, losses, run.control.interrupt) as workers:
                if self.config.run_dir is not None:  # not earlier: a run that could not start leaves nothing behind
                    await anyio.to_thread.run_sync(_begin_folder, self.config, self.config.run_dir, self._goes_on)
                stopwatch = Stopwatch()
                if resume is not None and resume.stopwatch is not None:
                    stopwatch.load_state_dict(resume.stopwatch)
                loop = TrainingLoop(
                    self.config,
                    workers,
                    run.engine,
                    run.control,
                    stopwatch,
                    run.take_state,
                    run.captures,
                    resume,
                    run.trace,
                )
                await loop.run()
            await self._finish(run, "on_training_end", loop.state)
        except Exception:
            await self._finish(run, "on_failure", run.state)
            raise
        except anyio.get_cancelled_exc_class():
            if run.engine.fatal():  # cancelled because of a hook: the others are told
                with anyio.move_on_after(FATAL_GRACE, shield=True):
                    await self._finish(run, "on_failure", run.state)
            raise

    async def _finish(self, run: Run, event: str, state: TrainerState) -> None:
        """The last event, once hooks have done what they have in hand, so that its state has their results."""
        with run.drain_scope() as scope:
            await self._drain(run)
        run.engine.unblock()
        await run.engine.publish(event, run.engine.fold(state))
        with run.drain_scope(scope.deadline):
            await self._drain(run)
        late = await run.engine.drain(0)
        if late:
            _log.warning("these hooks have not finished in time after the training, and are ended: %s", ", ".join(late))
        run.take_state(run.engine.fold(state))

    async def _drain(self, run: Run) -> None:
        await run.engine.drain(float("inf"))

    # Hooks from functions.

    def on_new_training_run(self, function: Any = None, **settings: Any) -> Any:
        """Make a hook of a function of the state, async or plain; `settings` are those of `Hook`."""
        return self._decorate("on_new_training_run", function, settings)

    def on_rollout_start(self, function: Any = None, **settings: Any) -> Any:
        """As `on_new_training_run`."""
        return self._decorate("on_rollout_start", function, settings)

    def on_rollout_end(self, function: Any = None, **settings: Any) -> Any:
        """As `on_new_training_run`."""
        return self._decorate("on_rollout_end", function, settings)

    def on_train_phase_end(self, function: Any = None, **settings: Any) -> Any:
        """As `on_new_training_run`."""
        return self._decorate("on_train_phase_end", function, settings)

    def on_epoch_end(self, function: Any = None, **settings: Any) -> Any:
        """As `on_new_training_run`."""
        return self._decorate("on_epoch_end", function, settings)

    def on_checkpoint_committed(self, function: Any = None, **settings: Any) -> Any:
        """As `on_new_training_run`."""
        return self._decorate("on_checkpoint_committed", function, settings)

    def on_training_end(self, function: Any = None, **settings: Any) -> Any:
        """As `on_new_training_run`."""
        return self._decorate("on_training_end", function, settings)

    def on_failure(self, function: Any = None, **settings: Any) -> Any:
        """As `on_new_training_run`."""
        return self._decorate("on_failure", function, settings)

    def _decorate(self, event: str, function: Any, settings: dict[str, Any]) -> Any:
        def register(target: Any) -> Any:
            hook = function_hook(event, target, settings)
            check_hooks([*self.hooks, hook])
            self.hooks.append(hook)
            return target

        return register if function is None else register(function)


def _begin_folder(config: TrainerConfig, folder: Path, resumed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write = replace_config if resumed else write_config
    write(config, folder / "config.toml")


def only_error(group: BaseException) -> BaseException:
    """The one error at the bottom of nested groups, or the group if there are several."""
    while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group
