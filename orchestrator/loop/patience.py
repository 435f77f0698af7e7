"""How long a run waits for its workers: as long as they take, until it is to end now."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import anyio

from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger("orchestrator")
Answer = TypeVar("Answer")


class WorkerHangs(OrchestratorError, RuntimeError):
    """A run that is to end now waits no more for a worker, which is ended by force. The log has its name."""


class Patience:
    """What a run waits for from its workers. Used in the event loop of the run."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._seconds: float | None = None
        self.hanging: set[str] = set()
        """The workers that are not waited for any more."""

    def limit(self, seconds: float, now: float) -> None:
        """From now on workers have so many seconds for an answer, also for one that is waited for already."""
        if self._seconds is None:
            self._seconds = seconds
            for scope in self._scopes:
                scope.deadline = now + seconds

    async def answer(self, worker: str, what: str, ask: Callable[..., Awaitable[Answer]], *args: object) -> Answer:
        """The result of `await ask(*args)`; raises WorkerHangs where it takes too long."""
        if worker in self.hanging:
            raise WorkerHangs(f"worker {worker!r} hangs; it is not asked to {what!r}")
        with anyio.CancelScope() as scope:
            if self._seconds is not None:
                scope.deadline = anyio.current_time() + self._seconds
            self._scopes.add(scope)
            try:
                return await ask(*args)
            finally:
                self._scopes.discard(scope)
        self.hanging.add(worker)
        message = f"worker {worker!r} has not answered {what!r} within {self._seconds:g} s after the run was to end now"
        _log.error("%s; the run ends without it, and it is ended by force", message)
        raise WorkerHangs(message)
