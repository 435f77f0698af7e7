"""A thread for the plain functions of one hook."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

from orchestrator.workers.event_loop import ThreadCall

if TYPE_CHECKING:
    from collections.abc import Callable


class FunctionThread:
    """Calls plain functions one at a time, in the order in which they were asked for.

    A thread cannot be ended from outside. When a call is cancelled, its caller continues at once, and the next call
    waits until the function has returned. The thread is a daemon: a function that never returns does not keep the
    program from ending, which a thread of a shared pool would.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[ThreadCall | None] | None = None

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        """`function(*args)`, in a copy of the caller's context; raises what it raises."""
        if self._calls is None:
            # Each thread has its own queue: one that was closed in the middle of a call has yet to find its end.
            self._calls = queue.SimpleQueue()
            threading.Thread(target=_serve, args=[self._calls], name=self._name, daemon=True).start()
        call = ThreadCall(function, *args)
        self._calls.put(call)
        return await call.result()

    def close(self) -> None:
        """The thread ends after its present call; a further call gets a new one."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


def _serve(calls: queue.SimpleQueue[ThreadCall | None]) -> None:
    while (call := calls.get()) is not None:
        if call.wanted:
            call.run()
        del call  # it holds the state that the function was given
