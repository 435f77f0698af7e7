"""A file that says that the run is alive, and where it is, for a supervisor outside."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from orchestrator.hooks.hook import Hook
from orchestrator.replacing import replacing
from orchestrator.workers.event_loop import in_thread
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

_log = logging.getLogger("orchestrator.hooks")


class Heartbeat(Hook):
    """Writes `path` every so many seconds: `{"time", "epoch", "agent_step", "epoch_time", "pid", "ended"}`.

    Times are seconds since 1970. An old `time` means that the process is gone or its event loop stands still; an old
    `epoch_time`, that of the last epoch's end, that the training does. `ended` is true after the end, or the failure.
    The file is replaced as a whole, so that it can be read at any time.
    """

    max_lag = 1

    def __init__(self, path: Path, seconds: float = 5.0) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds between heartbeats: {seconds}, expected more than 0")
        self._path = path
        self._seconds = seconds
        self._state = TrainerState()
        self._epoch_time = 0.0
        self._ended = False
        self._writing = threading.Lock()
        self._complained = False

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        self._state, self._epoch_time, self._ended = TrainerState(), time.time(), False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat)
            yield
            tasks.cancel_scope.cancel()

    async def on_new_training_run(self, state: TrainerState) -> None:
        self._note(state)

    async def on_epoch_end(self, state: TrainerState) -> None:
        self._note(state)

    async def on_training_end(self, state: TrainerState) -> None:
        await self._end()

    async def on_failure(self, state: TrainerState) -> None:
        await self._end()

    async def _end(self) -> None:
        self._ended = True
        await in_thread(self._write)

    def _note(self, state: TrainerState) -> None:
        # Only counters are needed, and the state would hold views.
        self._state = TrainerState(epoch=state.epoch, agent_step=state.agent_step)
        self._epoch_time = time.time()

    async def _beat(self) -> None:
        while True:
            await in_thread(self._write)
            await anyio.sleep(self._seconds)

    def _write(self) -> None:
        with self._writing:
            beat = {
                "time": time.time(),
                "epoch": self._state.epoch,
                "agent_step": self._state.agent_step,
                "epoch_time": self._epoch_time,
                "pid": os.getpid(),
                "ended": self._ended,
            }
            try:
                with replacing(self._path) as working:
                    working.write_text(f"{json.dumps(beat)}\n")
                self._complained = False
            except OSError as error:
                if not self._complained:  # the next may succeed
                    _log.error("the heartbeat %s could not be written: %r", self._path, error)
                self._complained = True
