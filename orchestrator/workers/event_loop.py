"""The event loop seen from other threads, and threads seen from the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.lowlevel import EventLoopToken
    from trio.lowlevel import TrioToken

_log = logging.getLogger("orchestrator")
ABANDON_SECONDS = 10.0
"""What a function in a thread has to return when its caller is cancelled."""


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that the caller runs in, where it is one of asyncio's."""
    return asyncio.get_running_loop() if anyio.get_cancelled_exc_class() is asyncio.CancelledError else None


def asyncio_task() -> asyncio.Task[Any] | None:
    """The task that the caller runs in, where its event loop is one of asyncio's."""
    loop = asyncio_loop()
    return None if loop is None else asyncio.current_task(loop)


def call_soon(token: EventLoopToken, function: Callable[[], object]) -> None:
    """Have the event loop of `token` call `function`, and return at once.

    From any thread, and from signal handlers. Does nothing where the event loop has ended.
    """
    native = token.native_token
    try:
        if isinstance(native, asyncio.AbstractEventLoop):
            native.call_soon_threadsafe(function)
        else:
            cast("TrioToken", native).run_sync_soon(function)
    except RuntimeError:
        return  # there is no reader left


def clock(token: EventLoopToken) -> Callable[[], float]:
    """`anyio.current_time`, also for what `call_soon` calls: outside of tasks, anyio does not know its event loop."""
    native = token.native_token
    if isinstance(native, asyncio.AbstractEventLoop):
        return native.time
    import trio

    return trio.current_time


class ThreadCall:
    """A function that a thread is to call, and that a task waits for. Made in the event loop of that task."""

    def __init__(self, function: Callable[..., Any], *args: object) -> None:
        self.wanted = True
        """Whether anybody waits for the result."""
        self.name: str = getattr(function, "__qualname__", None) or repr(function)
        self._function = functools.partial(function, *args)
        self._done = anyio.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        self._context = _context_outside_the_event_loop()
        self._token = anyio.lowlevel.current_token()

    def run(self) -> None:
        """In the thread: call the function."""
        try:
            self._result = self._context.run(self._function)
        except BaseException as error:
            self._error = error
        if self.wanted:
            call_soon(self._token, self._done.set)

    async def result(self, patience: float = 0.0) -> Any:
        """What the function has returned; raises what it has raised.

        A caller that is cancelled has so many more seconds of `patience` for the function to return.
        """
        try:
            await self._done.wait()
        except anyio.get_cancelled_exc_class():
            if patience:
                with anyio.move_on_after(patience, shield=True):
                    await self._done.wait()
                if not self._done.is_set():
                    _log.warning("%s hangs in a thread, which is left to itself", self.name)
            raise
        finally:
            self.wanted = False
        if self._error is not None:
            raise self._error
        return self._result


async def in_thread(function: Callable[..., Any], *args: object, abandon_on_cancel: bool = False) -> Any:
    """`function(*args)` in a thread, as `anyio.to_thread.run_sync`; but no program's end waits for the thread.

    The threads of anyio's pool keep a program alive until the event loop's main task has ended in order, which is not
    so after a SystemExit or a KeyboardInterrupt. A caller that is cancelled waits for the function, unless
    `abandon_on_cancel`, but not for ever: what it does may hang, as file systems do.
    """
    call = ThreadCall(function, *args)
    threading.Thread(target=call.run, name=call.name, daemon=True).start()
    return await call.result(patience=0.0 if abandon_on_cancel else ABANDON_SECONDS)


def _context_outside_the_event_loop() -> contextvars.Context:
    context = contextvars.copy_context()
    try:
        import sniffio
    except ModuleNotFoundError:
        return context
    # anyio.run notes the backend here, and would take this thread for one that runs an event loop already.
    context.run(sniffio.current_async_library_cvar.set, None)
    return context
