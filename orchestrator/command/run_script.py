"""A training run as a script: progress on the terminal, signals, a summary, an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import anyio

from orchestrator.command.checkpoint_signal import ignore_while_nothing_runs
from orchestrator.command.notices import notices_shown
from orchestrator.hooks.included.progress import ProgressHook, progress
from orchestrator.hooks.included.terminal import say
from orchestrator.hooks.included.upload import UploadHook
from orchestrator.hooks.included.wandb_artifacts import WandbCheckpointHook
from orchestrator.hooks.runner import HookFailed
from orchestrator.loop.patience import WorkerHangs
from orchestrator.run import parts_of
from orchestrator.trainer import Trainer
from state.error import only_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import TaskGroup

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.hooks.hook import Hook
    from orchestrator.run import Run
    from orchestrator.snapshots.resume import ResumeSource
    from state.trainer_state import TrainerState

GRACE = 6.0
"""Seconds that hooks have to finish after a signal, before the last event and half as long after it."""
EPOCH_GRACE = 4.0
"""Seconds that the epochs in progress have to finish after a signal: then a resumed run continues exactly there."""
END_SECONDS = 25.0
"""Seconds after a signal by which the program has ended, whatever hangs: a thread cannot be ended in any other way.
With what the slowest worker has for its present step or minibatch."""


def run_training(config: TrainerConfig, *, resume: ResumeSource | None = None) -> int:
    """Train to the end and say what came of it. Returns 0, or 128 + the signal's number after a signal.

    SIGINT, SIGTERM and SIGHUP: the first ends the run after the epochs in progress, or where these take long after a
    minibatch, with a final checkpoint; the second cancels; the third exits at once. Errors of the run are raised.
    SIGUSR1: a checkpoint at the end of the present epoch; nothing before the run has begun and after it has ended.
    """
    try:
        with nullcontext() if config.metrics.progress == "off" else notices_shown():
            return anyio.run(_run, config, resume)
    except HookFailed as failed:
        if isinstance(failed.__cause__, SystemExit):
            raise failed.__cause__ from failed  # the run has ended in order; now the program does, with the hook's code
        raise
    finally:
        ignore_while_nothing_runs()  # again: asyncio leaves a signal with its default action


async def _run(config: TrainerConfig, resume: ResumeSource | None) -> int:
    mode = config.metrics.progress
    hooks = [] if mode == "off" else [ProgressHook(config.total_agent_steps, mode)]
    trainer = Trainer(config, hooks=hooks, resume=resume)
    received: list[int] = []
    final: TrainerState | None = None
    error: BaseException | None = None
    run: Run | None = None
    try:
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as training:
                async with trainer.start() as run:
                    tasks.start_soon(_obey_signals, run, training, received, tasks)
                    final = await run.result()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = only_error(group)
    hangs_at_the_start = bool(received) and isinstance(error, WorkerHangs)  # the log has said so
    if error is not None and not hangs_at_the_start:  # outside of the handler, which would change its cause
        saved = None if run is None else run.state.latest_checkpoint_uri
        if saved is not None and config.run_dir is not None and mode != "off":
            error.add_note(f"saved before: {saved}; go on with: orchestrator train --resume {config.run_dir}")
        raise error
    if final is not None and mode != "off":
        _summarize(config, final, trainer.hooks)
    return 128 + received[0] if received else 0


async def _stop_long_epochs(run: Run, name: str) -> None:
    await anyio.sleep(EPOCH_GRACE)
    run.stop_now(name)


async def _obey_signals(run: Run, training: anyio.CancelScope, received: list[int], tasks: TaskGroup) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*numbers) as signals:
        async for number in signals:
            if number == signal.SIGUSR1:
                run.request_checkpoint()
                continue
            received.append(number)
            name = signal.Signals(number).name
            if len(received) == 1:
                say(f"{name}: stopping after this epoch; once more to stop at once", sys.stderr)
                run.stop(name)
                run.limit_drain(GRACE)
                threading.Thread(target=_exit_late, args=[run, number], name="end of the run", daemon=True).start()
                tasks.start_soon(_stop_long_epochs, run, name)
            elif len(received) == 2:
                say(f"{name}: stopping at once", sys.stderr)
                training.cancel()
            else:
                os._exit(128 + number)


def _exit_late(run: Run, number: int) -> None:
    """In a thread: end a program that something keeps from ending."""
    seconds = END_SECONDS + parts_of(run).patience.longest
    time.sleep(seconds)
    hooks = ", ".join(parts_of(run).engine.holders()) or "none"
    say(f"the run has not ended {seconds:.3g} s after a signal; hooks still at work: {hooks}; exiting", sys.stderr)
    os._exit(128 + number)


def _summarize(config: TrainerConfig, state: TrainerState, hooks: Sequence[Hook]) -> None:
    shown = progress(state, config.total_agent_steps)
    returns = shown["return"]
    lines = [
        f"trained {shown['steps']} agent steps in {shown.get('time', '?')} ({shown.get('rate', '?')}), "
        f"return {returns} over the last 100 episodes"
    ]
    if state.latest_checkpoint_uri is not None:
        lines.append(f"checkpoint {state.latest_checkpoint_uri}")
        if config.run_dir is not None:
            lines.append(f"evaluate it with: orchestrator eval {config.run_dir}")
            if state.agent_step < config.total_agent_steps:
                lines.append(f"go on with: orchestrator train --resume {config.run_dir}")
    else:
        lines.append("no checkpoint was written")
    for hook in hooks:
        problem = hook.copies.problem() if isinstance(hook, (UploadHook, WandbCheckpointHook)) else None
        if problem is not None:
            lines.append(f"{problem}; those of the run are in {config.run_dir}/checkpoints")
    say("\n".join(lines), sys.stdout)
