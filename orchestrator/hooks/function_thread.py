"""A thread for the plain functions of one hook."""

from __future__ import annotations

import contextvars
import functools
import queue
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable


class FunctionThread:
    """Calls plain functions one at a time, in the order in which they were asked for.

    A thread cannot be ended from outside. When a call is cancelled, its caller goes on at once, and the next call
    waits until the function has returned. The thread is a daemon: a function that never returns does not keep the
    program from ending, which a thread of a shared pool would.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        """`function(*args)`, in a copy of the caller's context; raises what it raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        call = _Call(functools.partial(function, *args))
        self._calls.put(call)
        try:
            await call.done.wait()
        finally:
            call.wanted = False
        if call.error is not None:
            raise call.error
        return call.result

    def close(self) -> None:
        """The thread ends after its present call."""
        self._calls.put(None)
        self._thread = None

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            if call.wanted:
                call.run()
            del call  # it holds the state that the function was given


class _Call:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.done = anyio.Event()
        self.wanted = True
        self.result: Any = None
        self.error: BaseException | None = None
        self._function = function
        self._context = _context_outside_the_event_loop()
        self._token = anyio.lowlevel.current_token()

    def run(self) -> None:
        try:
            self.result = self._context.run(self._function)
        except BaseException as error:
            self.error = error
        if self.wanted:
            try:
                anyio.from_thread.run_sync(self.done.set, token=self._token)
            except RuntimeError:
                return  # the event loop has ended: nobody waits for the result


def _context_outside_the_event_loop() -> contextvars.Context:
    context = contextvars.copy_context()
    try:
        import sniffio
    except ModuleNotFoundError:
        return context
    # anyio.run notes the backend here, and would take this thread for one that runs an event loop already.
    context.run(sniffio.current_async_library_cvar.set, None)
    return context
