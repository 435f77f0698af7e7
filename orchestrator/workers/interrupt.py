"""A flag in shared memory that tells working processes to stop at their next step, without a message."""

from __future__ import annotations

from state.shared_memory import SharedBuffer


class Interrupt:
    """Set by the host, polled by the workers it was passed to; reading it costs no system call."""

    def __init__(self, buffer: SharedBuffer | None = None) -> None:
        self._buffer = buffer or SharedBuffer.create(1, "interrupt")
        self._memory = self._buffer.map_shared()

    def set(self) -> None:
        self._memory[0] = 1

    def is_set(self) -> bool:
        return self._memory[0] != 0

    def __reduce__(self) -> tuple[type[Interrupt], tuple[SharedBuffer]]:
        return Interrupt, (self._buffer,)
