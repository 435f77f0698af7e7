"""The progress view on a real pseudo-terminal, as a terminal emulator shows it."""

from __future__ import annotations

import fcntl
import io
import math
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyte
import pytest
from rich.console import Console

from orchestrator.hooks.included.progress import ProgressHook, hook_health, progress, sparkline
from orchestrator.hooks.meter import Meter
from orchestrator.hooks.statistics import HookStatistics
from state.eval_rewards import EvalRewardSummary
from state.stats_tracker import StatsTracker
from state.stopwatch import StopwatchReading
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import publish_epochs, running
from tests.paths import PROJECT

pytestmark = pytest.mark.slow

DEADLINE = 60.0
NAMES = ("epoch", "steps", "rate", "left", "return", "policy_loss", "hooks")

# A view is driven epoch by epoch over standard input: "<epoch> <what else to do>".
SCRIPT = """
import logging, sys, warnings
logging.basicConfig(format="%(levelname)s %(message)s")  # keeps the stream that it finds
import anyio
from orchestrator import ProgressHook
from tests.orchestrator.command.test_progress_view import state_of
from tests.orchestrator.hooks.driving import FakeRun, HookEngine

async def main():
    engine = HookEngine([ProgressHook(10_000)], FakeRun())
    async with engine.running():
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            epoch, _, rest = line.strip().partition(" ")
            if rest.startswith("print"):
                print(f"{rest}")
            elif rest.startswith("log"):
                logging.warning(rest)
            elif rest.startswith("warn"):
                warnings.warn(rest)
            await engine.publish("on_epoch_end", state_of(int(epoch)))
            await engine.drain(10)
        await engine.publish("on_training_end", state_of(int(epoch)))
        await engine.drain(10)
    print("the end")

anyio.run(main)
"""


def state_of(epoch: int) -> TrainerState:
    """A state with everything that is shown."""
    tracker = StatsTracker()
    for number in range(1, epoch + 1):
        tracker = tracker.with_rollout({"episode_return": [10.0 * number], "episode_length": [5.0]}, 100)
    return TrainerState(
        epoch=epoch,
        agent_step=100 * epoch,
        stats_tracker=tracker,
        loss_stats={
            "ppo_actor/policy_loss": -0.012,
            "ppo_critic/value_loss": 1.5,
            "ppo_actor/approx_kl": 0.005,
            "ppo_actor/entropy": 0.6,
            "explained_variance": 0.75,
        },
        eval_scores=EvalRewardSummary.from_simulations({("task", "x"): 42.0}, policy_version=1, epoch=1),
        latest_checkpoint_uri="file:///runs/first/checkpoints/00000001",
        timer=StopwatchReading(seconds=2.0 * epoch, counts={"agent_step": 100.0 * epoch}),
    )


class Terminal:
    """A process on a pseudo-terminal, and what is on its screen."""

    def __init__(self, script: str, columns: int, rows: int, stdout: int | None = None) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        self._set_size(columns, rows)
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            text=True,
            env=environment | {"TERM": "xterm-256color"},
            cwd=PROJECT,
            start_new_session=True,
        )
        os.close(slave)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        self.read()
        self._set_size(columns, rows)
        self._drop_rows_as_terminals_do(rows)
        self.screen.resize(rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def _drop_rows_as_terminals_do(self, rows: int) -> None:
        """Below the cursor first, then above, from where they can be scrolled back; the emulator cuts off the top."""
        screen = self.screen
        above = max(0, screen.cursor.y + 1 - rows)
        place = screen.cursor.y - above
        screen.cursor.y = screen.lines - 1
        for _ in range(above):
            screen.index()
        screen.cursor.y = place
        for row in range(rows, screen.lines):
            screen.buffer.pop(row, None)
        screen.lines = min(screen.lines, rows)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def read(self, seconds: float = 0.0) -> bool:
        """Show what has been written; False at the end."""
        while select.select([self._master], [], [], seconds)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # nobody has it open any more
                return False
            if not data:
                return False
            self.raw += data
            self._stream.feed(data)
            seconds = 0.0
        return True

    def lines(self) -> list[str]:
        """All that can be seen, scrolled away or not."""
        above = ["".join(row[column].data for column in range(self.screen.columns)) for row in self.screen.history.top]
        return [line.rstrip() for line in (*above, *self.screen.display) if line.strip()]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.lines())
            self.read(0.05)

    def shows(self, name: str, value: str) -> bool:
        return any(line.split()[:2] == [name, value] for line in self.lines())

    def views(self) -> int:
        return sum(line.split()[:1] == ["steps"] for line in self.lines())

    def finish(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        while self.read(0.1):
            pass
        self.process.wait(DEADLINE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._master)


@contextmanager
def terminal(columns: int = 100, rows: int = 40, stdout: int | None = None) -> Iterator[Terminal]:
    opened = Terminal(SCRIPT, columns, rows, stdout)
    try:
        yield opened
    finally:
        opened.close()


def test_the_view_is_below_all_else_and_goes_at_the_end() -> None:
    words = ["print one", "log two", "warn three", "print [bold]four[/bold] %s", "log five"]
    with terminal() as shown:
        for epoch, words_of_epoch in enumerate(words, 1):
            shown.tell(f"{epoch} {words_of_epoch}")
            shown.wait_until(lambda epoch=epoch: shown.shows("epoch", str(epoch)))
        shown.wait_until(lambda: all(any(line.startswith(name) for line in shown.lines()) for name in NAMES))
        lines = shown.lines()
        places = [next(i for i, line in enumerate(lines) if word in line) for word in words]
        assert places == sorted(places)
        assert "WARNING log two" in lines
        assert max(places) < next(i for i, line in enumerate(lines) if line.startswith("epoch"))
        assert any(line.split() == ["checkpoint", "00000001"] for line in lines)
        assert any(line.startswith("return") and line.endswith("▁▃▅▆█") for line in lines)
        assert shown.views() == 1

        shown.finish()
        lines = shown.lines()
        assert shown.process.returncode == 0
        assert shown.views() == 0
        assert [word for word in words if any(word in line for line in lines)] == words
        assert lines[-1] == "the end"
        assert "steps 500/10,000" in "".join(lines)
        assert not shown.screen.cursor.hidden


def test_a_resized_window_has_one_view_that_fits_and_nothing_else_is_lost() -> None:
    with terminal(100, 24) as shown:
        for epoch in range(1, 21):  # more lines than rows
            shown.tell(f"{epoch} print line {epoch}")
        shown.wait_until(lambda: shown.shows("epoch", "20"))
        for columns, rows in [(44, 24), (150, 30), (100, 20)]:
            epoch += 1
            shown.resize(columns, rows)
            shown.tell(f"{epoch} print line {epoch}")
            shown.wait_until(lambda epoch=epoch: shown.shows("epoch", str(epoch)))
            seen = len(shown.raw)
            shown.wait_until(lambda seen=seen: shown.raw.count(b"epoch", seen) > 1)  # drawn again at rest
            lines = shown.lines()
            assert shown.views() == 1, "\n".join(lines)
            printed = [line for line in lines if line.startswith("print")]
            assert printed[-3:] == [f"print line {number}" for number in range(epoch - 2, epoch + 1)]
            assert len(printed) == len(set(printed))
            view = [line for line in lines if line.startswith(NAMES)]
            assert view
            assert all(len(line) <= min(columns, 78) for line in view)
        shown.finish()
        assert shown.process.returncode == 0


def test_standard_output_that_goes_to_a_file_stays_there(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file, terminal(stdout=file.fileno()) as shown:
        shown.tell("1 print for the file")
        shown.wait_until(lambda: shown.shows("epoch", "1"))
        shown.finish()
        assert (tmp_path / "out").read_text().splitlines() == ["print for the file", "the end"]
        assert not any("for the file" in line for line in shown.lines())


@pytest.mark.anyio
async def test_plain_lines_say_the_same() -> None:
    output = io.StringIO()
    hook = ProgressHook(10_000, "plain", Console(file=output, width=60))
    async with running(hook) as engine:
        await engine.publish("on_epoch_end", state_of(1))
        await engine.drain(10)
    [line] = output.getvalue().splitlines()
    expected = progress(state_of(1), 10_000, {})
    expected["return"] += " ▄"
    assert line == "  ".join(f"{name} {value}" for name, value in expected.items())
    assert set(NAMES) <= expected.keys()
    assert {"eval", "checkpoint", "value_loss", "approx_kl", "entropy", "explained_variance"} <= expected.keys()


@pytest.mark.anyio
async def test_a_console_without_unicode_gets_none() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=60)
    async with running(ProgressHook(10_000, "plain", console)) as engine:
        await publish_epochs(engine, 1)
        await engine.publish("on_training_end", state_of(2))
        await engine.drain(10)
        assert engine.statistics().hooks["progress"].failed == 0
    assert b"return 15.0  eval" in raw.getvalue()


def test_a_sparkline_reaches_from_the_least_to_the_greatest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0]) == "▄▄"
    assert sparkline([1.0, math.nan, 2.0, math.inf]) == "▁ █ "
    assert sparkline([math.nan]) == sparkline([]) == ""


def test_hooks_that_do_not_keep_up_are_named() -> None:
    fine: HookStatistics = Meter().read(state="idle", queue=0, lag=2)
    hooks = {
        "fine": fine,
        "slow": replace(fine, lag=3),
        "weak": replace(fine, failed=2),
        "gone": replace(fine, state="disabled", failed=3),
    }
    assert hook_health({"fine": fine}) == "ok"
    assert hook_health(hooks) == "slow: 3 behind; weak: 2 failures; gone: disabled, 3 failures"
