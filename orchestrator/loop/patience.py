"""How long a run waits for its workers: as long as they take, until it is to end now."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import anyio

from orchestrator.workers.event_loop import in_thread
from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger("orchestrator")
Answer = TypeVar("Answer")
_STEPS = 3.0
"""Times the longest step or minibatch that was seen of a worker, after which one is taken for hanging."""


class WorkerHangs(OrchestratorError, RuntimeError):
    """A run that is to end now waits no more for a worker, which is ended by force. The log has its name."""


class Patience:
    """What a run waits for from its workers. Used in the event loop of the run."""

    def __init__(self) -> None:
        self._scopes: dict[anyio.CancelScope, str] = {}
        self._seconds: float | None = None
        self._longest_steps: dict[str, float] = {}
        self.waits_for: dict[str, Callable[[], str]] = {}
        """Who a worker itself waits for, by its name; "" for nobody. For any thread."""
        self.hanging: set[str] = set()
        """The workers that are not waited for any more."""

    def limit(self, seconds: float, now: float) -> None:
        """From now on workers have so many seconds for an answer, also for one that is waited for already; those that
        have been seen to take long for a step or a minibatch have several times that."""
        if self._seconds is None:
            self._seconds = seconds
            for scope, worker in self._scopes.items():
                scope.deadline = now + self._seconds_for(worker)

    def saw(self, worker: str, longest_step: float) -> None:
        """A worker has needed so many seconds to notice that it is to stop, or would have."""
        self._longest_steps[worker] = max(longest_step, self._longest_steps.get(worker, 0.0))

    @property
    def longest(self) -> float:
        """Seconds that the slowest worker has by what was seen of it. For any thread."""
        return _STEPS * max(self._longest_steps.copy().values(), default=0.0)

    def _seconds_for(self, worker: str) -> float:
        return max(self._seconds or 0.0, _STEPS * self._longest_steps.get(worker, 0.0))

    async def answer(
        self, worker: str, what: str, ask: Callable[..., Awaitable[Answer]], *args: object, late: str = ""
    ) -> Answer:
        """The result of `await ask(*args)`; raises WorkerHangs where it takes too long. `late` is what is said then
        of what is no worker, and not ended by force."""
        if worker in self.hanging:
            raise WorkerHangs(late or f"worker {worker!r} hangs; it is not asked to {what!r}")
        with anyio.CancelScope() as scope:
            if self._seconds is not None:
                scope.deadline = anyio.current_time() + self._seconds_for(worker)
            self._scopes[scope] = worker
            try:
                return await ask(*args)
            finally:
                del self._scopes[scope]
        self.hanging.add(worker)
        if late:
            _log.error("%s; the run ends without it", late)
            raise WorkerHangs(late)
        seconds = self._seconds_for(worker)
        message = f"worker {worker!r} has not answered {what!r} within {seconds:.3g} s after the run was to end now"
        if worker in self.waits_for and (other := await in_thread(self.waits_for[worker], abandon_on_cancel=True)):
            message += f": it waits for {other}"
        _log.error("%s; the run ends without it, and it is ended by force", message)
        raise WorkerHangs(message)
