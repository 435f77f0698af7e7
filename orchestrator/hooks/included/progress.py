"""Progress on the terminal: a live view where there is one to draw on, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.environments.agents import policies_in
from orchestrator.hooks.hook import Hook
from orchestrator.hooks.included.learning_problems import problems_of, verdict_of
from orchestrator.hooks.included.metrics_record import statistic
from orchestrator.hooks.included.terminal import Forgiving
from orchestrator.workers.event_loop import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable, Mapping

    from rich.console import RenderableType

    from orchestrator.hooks.statistics import HookStatistics
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator.hooks")
PLAIN_SECONDS = 1.0
"""Seconds between plain lines."""
WIDTH = 78
"""Columns of the live view where the terminal has them: it changes as little as possible when that is resized."""
_RECENT_EPOCHS = 24
_BARS = "▁▂▃▄▅▆▇█"
_LOSSES = ("policy_loss", "value_loss", "approx_kl", "entropy")


class ProgressHook(Hook):
    """Shows steps, rate, remaining time, returns, losses, evaluation, checkpoint, and how the hooks keep up.

    The live view is drawn at the bottom by a separate thread; what is printed or logged meanwhile appears above it.
    Plain lines say the same. If the reader goes away, the run continues without them.
    """

    name = "progress"
    max_lag = 1

    def __init__(
        self,
        total_agent_steps: int,
        mode: Literal["auto", "live", "plain"] = "auto",
        console: Console | None = None,
    ) -> None:
        self._total = total_agent_steps
        self._console = console or Console(stderr=True)
        # A console whose reader has gone raises SystemExit otherwise, from whatever is printed or logged.
        self._output = Forgiving(self._console.file)
        self._console.file = cast("IO[str]", self._output)
        self._told = False
        self._live = mode == "live" or (mode == "auto" and self._console.is_terminal)
        self._state: TrainerState | None = None
        self._last_line = 0.0
        self._shown_epoch = 0
        self._returns: deque[float] = deque(maxlen=_RECENT_EPOCHS)

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        self._state, self._shown_epoch = None, 0
        self._returns.clear()
        if not self._live:
            yield
            return
        live = Live(
            get_renderable=self._view,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            # Standard output that goes to a file is not on the screen, and must stay in the file.
            redirect_stdout=sys.stdout.isatty(),
        )
        with live, _logging_above(self._console):
            yield

    async def on_epoch_end(self, state: TrainerState) -> None:
        self._state = state
        mean = None if state.stats_tracker is None else state.stats_tracker.means().get("episode_return")
        if mean is not None:
            self._returns.append(mean)
        now = time.monotonic()
        if not self._live and (state.epoch == 1 or now - self._last_line >= PLAIN_SECONDS):
            self._last_line = now
            await in_thread(self._print, state, abandon_on_cancel=True)  # a pipe that nobody reads blocks
        if self._output.error is not None and not self._told:
            self._told = True
            _log.warning("the progress can't be shown: %r; the run continues without it", self._output.error)

    async def on_training_end(self, state: TrainerState) -> None:
        if state.epoch and state.epoch != self._shown_epoch:
            await in_thread(self._print, state, abandon_on_cancel=True)

    def _print(self, state: TrainerState) -> None:
        self._shown_epoch = state.epoch
        text = "  ".join(f"{name} {value}" for name, value in self._shown(state).items())
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _shown(self, state: TrainerState) -> dict[str, str]:
        shown = progress(state, self._total, self.run.hook_statistics())
        if self._returns and not self._console.options.ascii_only:
            shown["return"] += f" {sparkline(self._returns)}"
        return shown

    def _view(self) -> RenderableType:
        state = self._state
        if state is None:
            return Text("starting the workers …")
        width = min(self._console.width, WIDTH)
        table = Table.grid(padding=(0, 2), expand=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(1, width - 20))
        bar = ProgressBar(total=self._total, completed=min(state.agent_step, self._total), width=min(40, width - 20))
        table.add_row("", bar)
        for name, value in self._shown(state).items():
            table.add_row(name, Text(value))
        return table


def progress(
    state: TrainerState, total_agent_steps: int, hooks: Mapping[str, HookStatistics] | None = None
) -> dict[str, str]:
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
    if (verdict := verdict_of(state)) is not None:
        shown["learning"] = verdict
    if state.eval_scores is not None and state.eval_scores.avg_category_score is not None:
        shown["eval"] = f"{state.eval_scores.avg_category_score:.1f}"
        if state.eval_scores.epoch is not None:
            shown["eval"] += f" (epoch {state.eval_scores.epoch})"
    stats = state.loss_stats or {}
    shown |= {name: f"{value:.3f}" for name in _LOSSES if (value := statistic(stats, name)) is not None}
    if "explained_variance" in stats:
        shown["explained_variance"] = f"{stats['explained_variance']:.3f}"
    for policy in policies_in(stats):
        returns = {} if tracker is None else tracker.means()
        of = {"return": returns.get(f"episode_return/{policy}")} | {
            name: statistic(stats, name, policy) for name in _LOSSES
        }
        of["explained_variance"] = stats.get(f"{policy}/explained_variance")
        shown[f"of {policy}"] = ", ".join(f"{name} {value:.3g}" for name, value in of.items() if value is not None)
    if problems := problems_of(state):
        shown["warnings"] = f"{', '.join(problems)} (see the log)"
    if state.latest_checkpoint_uri is not None:
        shown["checkpoint"] = state.latest_checkpoint_uri.rstrip("/").rpartition("/")[2]
    if hooks is not None:
        shown["hooks"] = hook_health(hooks)
    return shown


def hook_health(hooks: Mapping[str, HookStatistics]) -> str:
    """`ok`, or which hooks have failed, are out, or are more than 2 epochs behind."""
    complaints: list[str] = []
    for name, hook in hooks.items():
        what: list[str] = []
        if hook.state in ("disabled", "failed"):
            what.append(hook.state)
        if hook.failed:
            what.append(f"{hook.failed} failures")
        if hook.lag > 2:
            what.append(f"{hook.lag} behind")
        if what:
            complaints.append(f"{name}: {', '.join(what)}")
    return "; ".join(complaints) or "ok"


def sparkline(values: Iterable[float]) -> str:
    """A bar per value, from the least to the greatest of them; a value that is not finite is a space."""
    numbers = [value if abs(value) < float("inf") else None for value in values]
    finite = [number for number in numbers if number is not None]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    top = len(_BARS) - 1
    heights = [None if one is None else (one - low) / span * top if span > 0 else top // 2 for one in numbers]
    return "".join(" " if height is None else _BARS[round(height)] for height in heights)


@contextmanager
def _logging_above(console: Console) -> Generator[None, None, None]:
    """Log handlers that write to the screen go through what a live view has put in its place.

    They keep the stream that they were made with, which the view can't see.
    """
    moved: list[tuple[logging.StreamHandler[Any], Any]] = []
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    own = console.file.stream if isinstance(console.file, Forgiving) else console.file
    screen = {id(stream) for stream in (sys.__stderr__, sys.__stdout__, own) if stream is not None}
    for logger in loggers:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in screen and _is_tty(handler.stream):
                moved.append((handler, handler.stream))
                handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


def _is_tty(stream: Any) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{int(seconds):02d}s" if minutes else f"{seconds:.1f}s"
