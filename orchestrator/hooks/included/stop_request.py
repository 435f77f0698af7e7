"""Ends a run when something outside asks for it."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import anyio

from orchestrator.hooks.hook import Hook
from orchestrator.workers.event_loop import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator.hooks")


class StopSource(Protocol):
    """Something to ask: a file, a queue, an experiment tracker."""

    def should_stop(self) -> bool:
        """Whether the run is to end. May wait: it is called in a thread."""
        ...


class StopFile:
    """Asks for a stop by existing: `touch runs/first/stop`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"StopFile({str(self.path)!r})"

    def should_stop(self) -> bool:
        return self.path.exists()


class StopRequest(Hook):
    """Asks `source` every so many seconds, and has the run finish its epoch and end when it says so.

    A source that raises is reported, once in a row, and asked again.
    """

    def __init__(self, source: StopSource, seconds: float = 10.0) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds between questions: {seconds}, expected more than 0")
        self._source = source
        self._seconds = seconds

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ask)
            yield
            tasks.cancel_scope.cancel()

    async def on_new_training_run(self, state: TrainerState) -> None:
        """Nothing; a hook must have an event."""

    async def _ask(self) -> None:
        failing = False
        while True:
            try:
                if await in_thread(self._should_stop, abandon_on_cancel=True):
                    self.run.stop(f"asked for by {self._source!r}")
                    return
                failing = False
            except Exception as error:
                if not failing:
                    _log.error("%r could not be asked whether to stop: %r", self._source, error)
                failing = True
            await anyio.sleep(self._seconds)

    def _should_stop(self) -> bool:
        try:
            return self._source.should_stop()
        except (SystemExit, KeyboardInterrupt) as error:  # one that left the task would break the event loop off
            raise RuntimeError(f"it raised {error!r}") from error
