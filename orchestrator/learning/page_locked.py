"""Slots of shared memory that a GPU copies from and to by itself: without page-locking, the driver copies everything
once more, through memory of its own, while the learner waits."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import mmap

DEVICES = frozenset({"cuda"})
"""Types of devices whose copies page-locking helps."""
_KNOWN_TO_ALL_CONTEXTS = 1  # cudaHostRegisterPortable


class PageLocked:
    """Locks what it is given, for a learner on `device`, until `close`, or until nobody knows this any more; on other
    devices than GPUs it does nothing.

    Memory that can't be locked is used as it is, and `warnings` say so.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._locked: list[tuple[int, mmap.mmap]] = []
        """Addresses, and what is there, which must not be unmapped before it is unlocked: a GPU would go on copying
        from where that was, whatever has come to the same addresses since."""
        self._unlock = weakref.finalize(self, _unlock, self._locked)
        self._unlock.atexit = False  # the process's end unlocks it, too
        self.warnings: dict[str, str] = {}
        """What the user should know, by what it is about."""

    def lock(self, memory: mmap.mmap) -> None:
        """Lock newly mapped memory."""
        if self._device.type not in DEVICES or self.warnings:
            return
        address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
        code = _cudart().cudaHostRegister(address, len(memory), _KNOWN_TO_ALL_CONTEXTS)
        if not int(code):
            self._locked.append((address, memory))
            return
        self.warnings["page-locking"] = (
            f"CUDA can't lock {len(memory):,} bytes of shared memory ({_cudart().cudaGetErrorString(code)}), so that"
            f" copies to and from {self._device} take longer; nothing else changes. Containers may limit locked memory:"
            " look at ulimit -l"
        )
        # CUDA reports an error once more, to whoever launches something next.
        with suppress(RuntimeError):
            torch.zeros(1, device=self._device)

    def close(self) -> None:
        """Unlock everything, once nothing is being copied any more. Idempotent."""
        self._unlock()


def _unlock(locked: list[tuple[int, mmap.mmap]]) -> None:
    while locked:
        address, _ = locked.pop()
        _cudart().cudaHostUnregister(address)


def on_device(array: Any, device: torch.device) -> torch.Tensor:
    """An array of a slot, which stays as it is until the end of the epoch, on the device; from page-locked memory,
    without waiting for the copy."""
    return torch.from_numpy(array).to(device, non_blocking=device.type in DEVICES)


def _cudart() -> Any:
    return torch.cuda.cudart()
