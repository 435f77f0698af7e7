"""A flag in shared memory that tells working processes to stop at their next step, without a message."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from state.shared_memory import SharedBuffer

if TYPE_CHECKING:
    from collections.abc import Callable


class Interrupt:
    """Set by the host, polled by the workers it was passed to; reading it costs no system call."""

    def __init__(self, buffer: SharedBuffer | None = None) -> None:
        self._buffer = buffer or SharedBuffer.create(1, "interrupt")
        self._memory = self._buffer.map_shared()
        self.when_set: list[Callable[[], object]] = []
        """Called in this process when it is set: from any thread, and from signal handlers."""

    def set(self) -> None:
        self._memory[0] = 1
        for tell in self.when_set:
            tell()

    @property
    def shared_as(self) -> tuple[int, bytes]:
        """The name of its memory on other machines (see `RemoteMachine.share`), and what it holds."""
        return os.fstat(self._buffer.fd).st_ino, self._memory[:1]

    def is_set(self) -> bool:
        return self._memory[0] != 0

    def __reduce__(self) -> tuple[type[Interrupt], tuple[SharedBuffer]]:
        return Interrupt, (self._buffer,)


class InterruptChecks:
    """Asks whether to stop, and measures how long that takes to be noticed. A fork of the process ends here."""

    def __init__(self, interrupt: Callable[[], bool]) -> None:
        self.longest = 0.0
        """Seconds; the longest between two checks so far."""
        self._interrupt = interrupt
        self._process = os.getpid()
        self._last = time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        end_fork_of(self._process)
        return self._interrupt()


def end_fork_of(process: int) -> None:
    """Does nothing in `process`; ends a fork of it that has come back from the code which forked: two would write to
    the same memory, and answer the same requests."""
    if os.getpid() != process:
        text = f"the process {os.getpid()}, forked by code of process {process}, came back from that code, and is ended"
        os.write(2, f"orchestrator: {text}: let it end itself, with os._exit()\n".encode())
        os._exit(1)
