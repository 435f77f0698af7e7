"""`trace.json`: writes what a `Trace` records into a file that shows where the time goes."""

from __future__ import annotations

import itertools
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from orchestrator.hooks.hook import Hook
from orchestrator.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator.hooks")


class TraceHook(Hook):
    """Appends to the file after every epoch, so that a kill loses little. Open the file at ui.perfetto.dev.

    A file that exists stays: the next is `trace-2.json`, and so on, since each run has a clock of its own.
    """

    name = "trace"
    max_lag = 1

    def __init__(self, path: Path, max_bytes: int = 20_000_000) -> None:
        self.trace = Trace(max_bytes)
        self._path = path
        self._file: anyio.AsyncFile[str]
        self._told = False

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        await anyio.Path(self._path.parent).mkdir(parents=True, exist_ok=True)
        try:
            async with await _open_new(self._path) as self._file:
                try:
                    yield
                finally:
                    with anyio.CancelScope(shield=True):  # a full trace also of a run that is cancelled
                        await self._write()
                        await self._file.write(Trace.END)
        finally:
            self.trace.reset()

    async def on_epoch_end(self, state: TrainerState) -> None:
        await self._write()

    async def on_training_end(self, state: TrainerState) -> None:
        await self._write()

    async def _write(self) -> None:
        text = await anyio.to_thread.run_sync(self.trace.text, self.trace.take())
        await self._file.write(text)
        await self._file.flush()
        if self.trace.full and not self._told:
            self._told = True
            _log.info("%s is full; metrics.trace_megabytes says how large it may become", self._path)


async def _open_new(path: Path) -> anyio.AsyncFile[str]:
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            return await anyio.open_file(candidate, "x", encoding="utf-8")
        except FileExistsError:
            continue
    raise AssertionError
