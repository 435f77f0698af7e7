"""Progress on the terminal: a live view where there is one to draw on, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import anyio.to_thread
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from orchestrator.hooks.hook import Hook

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from rich.console import RenderableType

    from state.trainer_state import TrainerState

PLAIN_SECONDS = 1.0
"""Seconds between plain lines."""


class ProgressHook(Hook):
    """Shows steps, rate, remaining time, returns and losses. The live view is drawn by a thread of its own."""

    name = "progress"
    max_lag = 1

    def __init__(
        self,
        total_agent_steps: int,
        mode: Literal["auto", "live", "plain"] = "auto",
        console: Console | None = None,
    ) -> None:
        self._total = total_agent_steps
        self._console = console or Console(file=sys.stderr)
        self._live = mode == "live" or (mode == "auto" and self._console.is_terminal)
        self._state: TrainerState | None = None
        self._last_line = 0.0
        self._shown_epoch = 0

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        if not self._live:
            yield
            return
        with Live(get_renderable=self._view, console=self._console, refresh_per_second=4, transient=True):
            yield

    async def on_epoch_end(self, state: TrainerState) -> None:
        self._state = state
        now = time.monotonic()
        if not self._live and (state.epoch == 1 or now - self._last_line >= PLAIN_SECONDS):
            self._last_line = now
            await anyio.to_thread.run_sync(self._print, state)  # a pipe that nobody reads blocks

    async def on_training_end(self, state: TrainerState) -> None:
        if state.epoch and state.epoch != self._shown_epoch:
            await anyio.to_thread.run_sync(self._print, state)

    def _print(self, state: TrainerState) -> None:
        self._shown_epoch = state.epoch
        text = "  ".join(f"{name} {value}" for name, value in progress(state, self._total).items())
        self._console.print(text, highlight=False, soft_wrap=True)

    def _view(self) -> RenderableType:
        state = self._state
        table = Table.grid(padding=(0, 2))
        if state is None:
            table.add_row("starting the workers …")
            return table
        table.add_row("", ProgressBar(total=self._total, completed=min(state.agent_step, self._total), width=40))
        for name, value in progress(state, self._total).items():
            table.add_row(f"[bold]{name}", value)
        return table


def progress(state: TrainerState, total_agent_steps: int) -> dict[str, str]:
    """What is shown of a state, by name."""
    shown = {"epoch": f"{state.epoch}", "steps": f"{state.agent_step:,}/{total_agent_steps:,}"}
    timer, tracker = state.timer, state.stats_tracker
    if timer is not None:
        rate = timer.rate("agent_step")
        remaining = timer.remaining_seconds(state.agent_step, total_agent_steps)
        shown["rate"] = f"{rate or 0:,.0f}/s"
        shown["time"] = _duration(timer.seconds)
        shown["left"] = "?" if remaining is None else _duration(remaining)
    mean = None if tracker is None else tracker.recent_mean("episode_return")
    shown["return"] = "-" if mean is None else f"{mean:.1f}"
    if state.eval_scores is not None and state.eval_scores.avg_category_score is not None:
        shown["eval"] = f"{state.eval_scores.avg_category_score:.1f}"
    for name in ("ppo_actor/approx_kl", "ppo_actor/entropy", "explained_variance"):
        if state.loss_stats is not None and name in state.loss_stats:
            shown[name.rpartition("/")[2]] = f"{state.loss_stats[name]:.3f}"
    return shown


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{int(seconds):02d}s" if minutes else f"{seconds:.1f}s"
