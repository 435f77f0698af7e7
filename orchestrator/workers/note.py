"""A short text in shared memory: what a worker wants its host to know when it does not answer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from state.shared_memory import SharedBuffer

if TYPE_CHECKING:
    from collections.abc import Callable

_BYTES = 1024


class Note:
    """Set by the worker that it was passed to, read by the host."""

    def __init__(self, buffer: SharedBuffer | None = None) -> None:
        self._buffer = buffer or SharedBuffer.create(_BYTES, "note")
        self._memory = self._buffer.map_shared()

    def set(self, text: str) -> None:
        data = text.encode()[: _BYTES - 1]
        self._memory[:_BYTES] = data.ljust(_BYTES, b"\0")

    def read(self, elsewhere: Callable[[int, int], bytes] | None = None) -> str:
        """Its text; where the worker is on another machine, `elsewhere` reads the beginning of memory by its name."""
        data = self._memory[:_BYTES] if elsewhere is None else elsewhere(os.fstat(self._buffer.fd).st_ino, _BYTES)
        return data.rstrip(b"\0").decode(errors="replace")

    def __reduce__(self) -> tuple[type[Note], tuple[SharedBuffer]]:
        return Note, (self._buffer,)
