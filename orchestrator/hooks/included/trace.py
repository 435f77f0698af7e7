"""`trace.json`: writes what a `Trace` records into a file that shows where the time goes."""

from __future__ import annotations

import itertools
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from orchestrator.config.paths import PATH
from orchestrator.hooks.function_thread import FunctionThread
from orchestrator.hooks.hook import Hook
from orchestrator.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from io import FileIO
    from pathlib import Path

    from orchestrator.tracing.trace import Event
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator.hooks")
CLOSING_SECONDS = 3.0
"""What writing the rest of a trace may take at the end of a run."""


class TraceHook(Hook):
    """Appends to the file after every epoch, so that a kill loses little. Open the file at ui.perfetto.dev.

    A file that exists stays: the next is `trace-2.json`, and so on, since each run has its own clock.
    """

    name = "trace"
    max_lag = 1

    def __init__(self, path: Path, max_bytes: int = 20_000_000) -> None:
        self.trace = Trace(max_bytes)
        self._path = path
        self._file: FileIO
        self._unwritten = bytearray()
        """What waits for the disk to take it: no more than `max_bytes`, at which the trace ends."""
        self._failing = False
        self._told = False

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        self._thread = FunctionThread("trace")
        try:
            self._file = await self._thread.call(_open_new, self._path)
            self._unwritten.clear()
            self._failing = False
            try:
                yield
            finally:
                with anyio.move_on_after(CLOSING_SECONDS, shield=True):  # a full trace also of a run that is cancelled
                    self._tell(await self._thread.call(self._finish, self.trace.take()))
        finally:
            self._thread.close()
            self.trace.reset()

    async def on_epoch_end(self, state: TrainerState) -> None:
        await self._write()

    async def on_training_end(self, state: TrainerState) -> None:
        await self._write()

    async def _write(self) -> None:
        self._tell(await self._thread.call(self._append, self.trace.take()))
        if self.trace.full and not self._told:
            self._told = True
            _log.info("%s is full; %s says how large it may become", self._path, PATH.metrics.trace_megabytes)

    def _tell(self, error: OSError | None) -> None:
        """Log that the file can't be written, or can be again: once, since a disk stays full for many epochs."""
        if error is not None and not self._failing:
            _log.error(
                "the trace can't be written: %s (%s); what it lacks waits until it can be", error, self._file.name
            )
        elif error is None and self._failing:
            _log.info("the trace is written again (%s), with what waited", self._file.name)
        self._failing = error is not None

    # In the thread.

    def _append(self, taken: list[Event]) -> OSError | None:
        self._unwritten += self.trace.text(taken).encode()
        try:
            while self._unwritten:
                del self._unwritten[: self._file.write(self._unwritten)]
        except OSError as error:
            return error
        return None

    def _finish(self, taken: list[Event]) -> OSError | None:
        with self._file:
            error = self._append(taken)
            self._unwritten += Trace.END.encode()
            return error or self._append([])


def _open_new(path: Path) -> FileIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            return candidate.open("xb", buffering=0)
        except FileExistsError:
            continue
    raise AssertionError
