"""Training as something to await."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from losses import LossSet
from orchestrator.checkpoints import CheckpointFolder
from orchestrator.checks.configuration import (
    check_config,
    check_losses,
    check_minibatches,
    check_shards,
    has_problems,
)
from orchestrator.checks.sending import check_sendable
from orchestrator.config.error import ConfigurationError, shown
from orchestrator.config.file import as_recorded, read_config, replace_config, write_config
from orchestrator.config.paths import PATH
from orchestrator.config.settings import TrainerConfig
from orchestrator.config.trust import check_trust
from orchestrator.hooks.engine import check_hooks
from orchestrator.hooks.function_hook import EventDecorator
from orchestrator.hooks.included.defaults import default_hooks, named_hooks
from orchestrator.hooks.runner import HookFailed
from orchestrator.learning.default_losses import default_losses
from orchestrator.loop.ctrl_c import cancelled_by_ctrl_c
from orchestrator.loop.training_loop import TrainingLoop
from orchestrator.loop.worker_group import worker_group
from orchestrator.run import Run, RunStatistics, States, parts_of
from orchestrator.snapshots.checkpoint_files import read_checkpoint
from orchestrator.snapshots.initial_weights import check_weights, read_weights, with_pinned_weights
from orchestrator.snapshots.resume import ResumeSource, find_resume_source, lost_edits, resume_problems
from orchestrator.workers.event_loop import in_thread
from orchestrator.workers.process import prepare_for_workers
from state.error import only_error
from state.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from losses import LearnerCallback
    from orchestrator.config.error import Problem
    from orchestrator.hooks.hook import Hook
    from orchestrator.loop.run_parts import RunParts
    from orchestrator.snapshots.checkpoint_files import ResumePoint
    from orchestrator.snapshots.initial_weights import Weights
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator")


FATAL_GRACE = 5.0
"""Seconds that hooks have for `on_failure` when one of them has ended the run at once."""
TOLD_AFTER = 10.0
"""Seconds after which a run that waits for hooks at its end says so."""


class Trainer:
    """Trains a policy as `config` says; `hooks` run alongside, `losses` replace the configured ones.

    `resume` is a run's folder, a checkpoint, or the URI of one: the training resumes there, by default with the
    recorded settings and in the folder it began in. The checkpoint is found and read while the trainer is made, which
    blocks (as for `init_from`): a service does that in a thread, or gives what `find_resume_source` has found there.

    `trust_code` says whose code may run (environments, networks, losses and sinks that settings name): by default that
    of `config` and of a run on this machine, but not that of settings from a URI; True: also that; False: no code of
    anybody's, for a service whose `config` comes with a request. What is given as an object always may, and so may what
    installed packages give names to.

    Raises CheckpointError, ConfigurationError, HookConfigurationError or ValueError for what can be known to be wrong
    with settings, losses and hooks without importing an environment. What that shows, such as the name of an
    environment that there is not, `run()` and `start()` raise, or, together with all else, this where it raises anyway.
    """

    def __init__(
        self,
        config: TrainerConfig | None = None,
        *,
        hooks: Sequence[Hook] = (),
        losses: Sequence[LearnerCallback] | None = None,
        resume: ResumeSource | Path | str | None = None,
        trust_code: bool | None = None,
    ) -> None:
        if config is not None and not isinstance(config, TrainerConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(_no_config(config))
        if isinstance(resume, (Path, str)):
            own = None if trust_code is False else config
            resume = find_resume_source(resume, trust_code=bool(trust_code), own=own)
        self._source = resume
        self._losses = None if losses is None else LossSet(losses)  # finds names given twice, and losses that are none
        self.losses = None if self._losses is None else self._losses.members
        self._run: Run | None = None
        self.config = config or (TrainerConfig() if resume is None else resume.config)
        if resume is not None and self.config.staleness == "auto":  # the run has found what that is, or will
            self.config = replace(self.config, staleness=resume.config.staleness)
        if resume is not None:
            self.config = self.config.with_shards(resume.config.shards)
        if trust_code is False:
            check_trust(self.config, "a request")
        if has_problems(self.config, losses=None if self._losses is None else self._losses.losses):
            self._check_config()
        self.config = with_pinned_weights(_settled(self.config), None if resume is None else resume.config)
        resumed = None if resume is None else resume.checkpoint.path
        given = [*named_hooks(self.config), *hooks]
        self.hooks: list[Hook] = [*default_hooks(self.config, resumed, given), *given]
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

        An error in the context's body, or cancellation, ends the run at once. So does Ctrl-C: where the
        program's event loop makes nothing of it, CtrlC is raised.
        """
        with cancelled_by_ctrl_c():
            async with self._started() as run:
                yield run

    @asynccontextmanager
    async def _started(self) -> AsyncGenerator[Run]:
        if self.config.collection.backend == "process":
            await in_thread(prepare_for_workers)
        # Checking imports the environment's package, which may take a while.
        losses = await in_thread(self._checked_losses, abandon_on_cancel=True)
        resume = None
        if self._source is not None:
            resume = await in_thread(read_checkpoint, self._source.checkpoint, abandon_on_cancel=True)
        weights = None
        if self.config.init_from is not None and resume is None:
            weights = await in_thread(read_weights, self.config.init_from, abandon_on_cancel=True)
        run = self._run = Run(self.config, self.hooks, 0 if resume is None else resume.state.epoch)
        error: BaseException | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._train, parts_of(run), losses, resume, weights, name="train")
                yield run
        except BaseExceptionGroup as group:
            error = only_error(group)
        if error is None or isinstance(run.error, (SystemExit, KeyboardInterrupt)):
            error = run.error
        if error is not None:  # outside of the handler, which would change the error's cause or context
            raise error

    def _checked_losses(self) -> Sequence[LearnerCallback]:
        self._check_config()
        if self._source is not None:
            for change in lost_edits(self._source, self.config):
                _log.warning("resumed, but %s", change)
        losses = self._losses or LossSet(default_losses(self.config))
        check_losses(losses.losses, self.config.staleness)
        if losses.needs_segments:
            check_minibatches(self.config, ["a loss needs whole segments"])
        check_shards(self.config, losses.members)
        check_sendable(losses.members)
        return losses.members

    def _check_config(self) -> None:
        losses = None if self._losses is None else self._losses.losses
        check_config(self.config, losses=losses, resuming=self._goes_on, known=self._resume_problems())

    def _resume_problems(self) -> Sequence[Problem]:
        return [] if self._source is None else list(resume_problems(self._source, self.config))

    @property
    def _goes_on(self) -> bool:
        """Whether a resumed run stays in its own folder."""
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

    async def _train(
        self, run: RunParts, losses: Sequence[LearnerCallback], resume: ResumePoint | None, weights: Weights | None
    ) -> None:
        error: BaseException | None = None
        try:
            if resume is not None:
                run.engine.load_hook_states(resume.hook_states)
            async with run.engine.running():
                await self._train_with_hooks(run, losses, resume, weights)
            failure = run.engine.failure()
            if failure is not None:
                raise HookFailed(f"the run was stopped: {run.control.reason}") from failure
        except (anyio.get_cancelled_exc_class(), GeneratorExit) as caught:
            error = caught
            raise
        except (
            BaseException
        ) as caught:  # `start` raises it: out of this task, a SystemExit would break off the event loop
            error = only_error(caught)
        finally:
            try:
                await run.close_workers()
            finally:
                run.end(error)

    async def _train_with_hooks(
        self, run: RunParts, losses: Sequence[LearnerCallback], resume: ResumePoint | None, weights: Weights | None
    ) -> None:
        try:
            async with worker_group(self.config, losses, run.control.interrupt, run.patience) as workers:
                run.recorded_spaces = workers.recorded_spaces
                if weights is not None:
                    check_weights(workers.description.layout, weights, str(self.config.init_from))
                if self.config.run_dir is not None:  # not earlier: a run that could not start leaves nothing behind
                    await in_thread(
                        _begin_folder, self.config, self.config.run_dir, self._goes_on, abandon_on_cancel=True
                    )
                stopwatch = Stopwatch()
                if resume is not None and resume.stopwatch is not None:
                    stopwatch.load_state_dict(resume.stopwatch)
                loop = TrainingLoop(
                    self.config,
                    workers,
                    run.engine,
                    run.control,
                    stopwatch,
                    run.newest,
                    run.snapshots,
                    self._fix_staleness,
                    resume,
                    run.trace,
                    weights,
                )
                run.loop_statistics = loop.statistics
                run.training = True
                await loop.run()
            await self._finish(run, "on_training_end")
        except Exception:
            await self._finish(run, "on_failure")
            raise
        except anyio.get_cancelled_exc_class():
            if run.engine.fatal():  # cancelled because of a hook: the others hear of it
                with anyio.move_on_after(FATAL_GRACE, shield=True):
                    await self._finish(run, "on_failure")
            raise

    async def _finish(self, run: RunParts, event: str) -> None:
        """The last event, once hooks have finished their work, so that its state has their results."""
        with run.drain_scope() as scope:
            await _drain(run, scope)
        run.engine.unblock()
        await run.engine.publish(event, run.newest.derive())
        with run.drain_scope(scope.deadline) as scope:
            await _drain(run, scope)
        late = await run.engine.drain(0)
        if late:
            cure = f"; {PATH.drain_timeout} says how long they may take"
            _log.warning(
                "these hooks have not finished within %.3g s after the training, and are ended: %s%s",
                *(run.drain_seconds, ", ".join(late), cure if run.drain_seconds == self.config.drain_timeout else ""),
            )
        run.newest.advance()

    async def _fix_staleness(self, staleness: float) -> None:
        """What `auto` has found is a setting of the run from now on, and of those that resume it."""
        self.config = self.current_run.config = replace(self.config, staleness=staleness)
        if self.config.run_dir is not None:
            await in_thread(replace_config, self.config, self.config.run_dir / "config.toml")

    # Hooks from functions.

    on_new_training_run = EventDecorator()
    on_rollout_start = EventDecorator()
    on_rollout_end = EventDecorator()
    on_train_phase_end = EventDecorator()
    on_epoch_end = EventDecorator()
    on_checkpoint_committed = EventDecorator()
    on_training_end = EventDecorator()
    on_failure = EventDecorator()


async def _drain(run: RunParts, scope: anyio.CancelScope) -> None:
    """Wait for hooks until `scope` ends, and say so where it takes long: nothing else is to be seen of it."""
    late = await run.engine.drain(TOLD_AFTER)
    if late:
        left = max(0.0, scope.deadline - anyio.current_time())
        _log.warning("the training is over; the run waits up to %.3g s more for hooks: %s", left, ", ".join(late))
        await run.engine.drain(float("inf"))


def _no_config(value: object) -> str:
    """What is said of something else in a configuration's place."""
    cure = "write Trainer(TrainerConfig(...))"
    if (isinstance(value, str) and Path(value).suffix == ".toml") or isinstance(value, Path):
        cure = f"write Trainer(read_config(Path({str(value)!r})))"
    elif isinstance(value, str):
        cure = f"write Trainer(TrainerConfig(environment={value!r}))"
    elif isinstance(value, Mapping):
        cure = "write Trainer(from_table(...)), which makes a TrainerConfig of tables and values"
    return f"config must be a TrainerConfig, not {shown(value)}: {cure}"


def _settled(config: TrainerConfig) -> TrainerConfig:
    """The configuration of a run with a folder as its file will have it, wherever the process goes meanwhile."""
    if config.run_dir is None:
        return config
    config = replace(config, run_dir=config.run_dir.absolute())
    try:
        return as_recorded(config)
    except ConfigurationError:
        return config  # which says what is wrong together with all else, before the start


def _begin_folder(config: TrainerConfig, folder: Path, resumed: bool) -> None:
    if resumed:
        with CheckpointFolder(folder / "checkpoints").claim():  # or else the run is still active in another process
            file = folder / "config.toml"
            if not file.is_file() or read_config(file) != config:  # it may hold notes that are worth keeping
                replace_config(config, file)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(config, folder / "config.toml")
