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
    from pathlib import Path
    from typing import TextIO

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
        self._file: TextIO
        self._told = False

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        self._thread = FunctionThread("trace")
        try:
            self._file = await self._thread.call(_open_new, self._path)
            try:
                yield
            finally:
                with anyio.move_on_after(CLOSING_SECONDS, shield=True):  # a full trace also of a run that is cancelled
                    await self._thread.call(self._finish, self.trace.take())
        finally:
            self._thread.close()
            self.trace.reset()

    async def on_epoch_end(self, state: TrainerState) -> None:
        await self._write()

    async def on_training_end(self, state: TrainerState) -> None:
        await self._write()

    async def _write(self) -> None:
        await self._thread.call(self._append, self.trace.take())
        if self.trace.full and not self._told:
            self._told = True
            _log.info("%s is full; %s says how large it may become", self._path, PATH.metrics.trace_megabytes)

    # In the thread.

    def _append(self, taken: list[Event]) -> None:
        self._file.write(self.trace.text(taken))
        self._file.flush()

    def _finish(self, taken: list[Event]) -> None:
        with self._file:
            self._append(taken)
            self._file.write(Trace.END)


def _open_new(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            return candidate.open("x", encoding="utf-8")
        except FileExistsError:
            continue
    raise AssertionError
