"""Ctrl-C in programs that run an event loop by themselves, `loop.run_until_complete(trainer.run())`."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from orchestrator.workers.event_loop import call_soon
from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Generator


class CtrlC(OrchestratorError, RuntimeError):
    """The run was ended by Ctrl-C, in a program whose event loop makes nothing of it."""


@contextmanager
def cancelled_by_ctrl_c() -> Generator[None]:
    """A scope that Ctrl-C cancels, where nobody else sees to it as `asyncio.run` and trio do. Raises CtrlC when all in
    it has ended.

    Otherwise Ctrl-C would break the event loop off wherever it happens to be, and nothing in it would ever end. So
    would a KeyboardInterrupt at the end, before the event loop could tell the threads of anyio's pool to end.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    token = anyio.lowlevel.current_token()
    received: list[int] = []

    def cancel(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        call_soon(token, scope.cancel)

    signal.signal(signal.SIGINT, cancel)
    try:
        with anyio.CancelScope() as scope:
            yield
    finally:
        if signal.getsignal(signal.SIGINT) is cancel:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if received:
        raise CtrlC("the run was ended by Ctrl-C") from KeyboardInterrupt()
