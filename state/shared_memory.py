"""Anonymous shared memory: buffers passed between processes by file descriptor, and rings of reusable slots.

Nothing has a name in the file system, so a killed process leaks nothing. Readers outside the training loop get a
descriptor that can't be written through, and each array that is taken from a view has a private mapping (copy on write)
of its own: numpy refuses to write to it, and a write that goes around numpy (a torch tensor that aliases the array,
say) changes pages that nobody else sees, neither the training nor whoever takes the same array from the same view.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import tempfile
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np

from state.error import OrchestratorError

PAGE = mmap.PAGESIZE
PrivateMapping: TypeAlias = "ctypes.Array[ctypes.c_uint8]"
"""Bytes of one reader's own. Takes weak references; arrays made from it keep it, and thus its lease, alive."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value
_COMPARED = 1 << 20
"""Bytes that are compared at a time."""


class FileSizeLimited(OrchestratorError, RuntimeError):
    """Shared memory is larger than files may be."""

    def __init__(self, nbytes: int) -> None:
        limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        cure = "start the run where `ulimit -f` says unlimited: only who set the limit can lift it, such as a shell"
        if hard != limit:
            cure = "run `ulimit -S -f $(ulimit -H -f)` before, in the same shell"
        super().__init__(
            f"shared memory of {nbytes} bytes is refused, since files of this process may have only {limit} bytes, and"
            f" it counts as one; expected a limit above what the run needs: {cure}"
        )


class SharedBuffer:
    """Anonymous memory of `nbytes` bytes behind a file descriptor that this object owns.

    It travels to another process only through a worker's channel, which passes the descriptor along.
    """

    __slots__ = ("__weakref__", "_closed", "_reader", "fd", "nbytes")

    def __init__(self, fd: int, nbytes: int) -> None:
        self.fd = fd
        self.nbytes = nbytes
        self._reader: SharedBuffer | None = None
        self._closed = weakref.finalize(self, os.close, fd)

    @classmethod
    def create(cls, nbytes: int, name: str = "slot") -> SharedBuffer:
        """Allocate zeroed memory; pages are taken from the system when they are first touched.

        Raises FileSizeLimited where the process may have no file of that size, which this is to the system.
        """
        nbytes = max(PAGE, -(-nbytes // PAGE) * PAGE)
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create(f"orchestrator-{name}", os.MFD_CLOEXEC)
        else:  # macOS: an unlinked file behaves the same, only that the system may write it back
            with tempfile.TemporaryFile(prefix=f"orchestrator-{name}-") as file:
                fd = os.dup(file.fileno())
        try:
            os.ftruncate(fd, nbytes)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and error.errno == errno.EFBIG:
                raise FileSizeLimited(nbytes) from error
            raise
        return cls(fd, nbytes)

    def map_shared(self) -> mmap.mmap:
        """A writable mapping that every process sees: for the slot's one writer and for workers that read it."""
        return mmap.mmap(self.fd, self.nbytes)

    def map_private(self) -> PrivateMapping:
        """A copy-on-write mapping: what is written to it stays with whoever wrote. Raises OSError where the process has
        as many mappings as it may."""
        # Not by the mmap module, whose mappings keep a file descriptor each: a hook may hold thousands of arrays.
        access = mmap.PROT_READ | mmap.PROT_WRITE
        address: int | None = _libc.mmap(None, self.nbytes, access, mmap.MAP_PRIVATE, self.fd, 0)
        if address is None or address == _MAP_FAILED:
            error = ctypes.get_errno()
            reason = f"{os.strerror(error)}; are too many arrays of states held?"
            raise OSError(error, f"can't map {self.nbytes} bytes of shared memory: {reason}")
        mapping = (ctypes.c_uint8 * self.nbytes).from_address(address)
        weakref.finalize(mapping, _libc.munmap, address, self.nbytes).atexit = False
        return mapping

    def reader(self) -> SharedBuffer:
        """The same memory behind a descriptor that can't be written through: mapping it shared and writable raises
        PermissionError. (Where the system can't open a descriptor again, as macOS, it can be.)"""
        if self._reader is None:
            try:
                fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                fd = os.dup(self.fd)
            self._reader = SharedBuffer(fd, self.nbytes)
        return self._reader

    def copy(self, name: str) -> SharedBuffer:
        """Other memory with the same content."""
        copy = SharedBuffer.create(self.nbytes, name)
        copy.map_shared()[:] = memoryview(self.map_private())
        return copy

    def close(self) -> None:
        """Close the descriptor; mappings made from it stay valid."""
        self._closed()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "views of experience and policy travel only as arguments of a worker's call, not by plain pickle: copy the "
            "arrays that you need, or leave the views out, dataclasses.replace(state, experience=None, policy=None)"
        )


class BufferView:
    """The right to read a buffer in the process that owns its content, without any promise that it stays."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: SharedBuffer) -> None:
        self.buffer = buffer

    def readonly(self) -> memoryview:
        """The bytes, for one caller: nothing can make the memory view writable again, and what gets around it reaches
        nobody else."""
        return memoryview(self.private()).toreadonly()

    def private(self) -> PrivateMapping:
        """A separate mapping for one caller, which may overwrite it."""
        return self.buffer.map_private()

    def holds_the_same(self, other: BufferView, nbytes: int) -> bool:
        """Whether the first `nbytes` bytes are the same."""
        if self is other or self.buffer is other.buffer:
            return True
        mine, theirs = (np.frombuffer(view.readonly(), np.uint8, count=nbytes) for view in (self, other))
        blocks = (slice(start, start + _COMPARED) for start in range(0, nbytes, _COMPARED))
        return all(np.array_equal(mine[block], theirs[block]) for block in blocks)

    def __deepcopy__(self, memo: dict[int, object]) -> BufferView:
        return BufferView(self.buffer.copy("copy").reader())

    def __reduce__(self) -> tuple[type[BufferView], tuple[SharedBuffer]]:
        # In another process there is no lease to hold: whoever sends a view holds it until the answer.
        return BufferView, (self.buffer,)


@dataclass(frozen=True, slots=True)
class SlotRingStatistics:
    """Slots of shared memory: each is at work, leased, both, or free."""

    slots: int
    """How many there are."""
    working: int
    """Being filled, waiting for the learner, being learned from, or, of policies, still needed to act with."""
    leased: int
    """Kept by views outside of the loop, of hooks and programs."""
    free: int
    """Neither at work nor leased."""
    max_leased: int
    """How many may be kept by views alone (`collection.held_epochs`)."""
    nbytes: int
    """Of all slots."""
    withheld: int
    """States that have come without a view, because so many were leased."""


class Slot:
    """One reusable buffer of a ring. `index` identifies it to the workers."""

    __slots__ = ("buffer", "claims", "index", "leases")

    def __init__(self, index: int, buffer: SharedBuffer) -> None:
        self.index = index
        self.buffer = buffer
        self.claims = 0
        self.leases = 0

    def __repr__(self) -> str:
        return f"<Slot {self.index}: {self.claims} claims, {self.leases} leases>"


class Lease(BufferView):
    """The right to read a slot; it stays as it is for as long as this object or an array taken from it lives."""

    __slots__ = ("_ring", "_slot")

    def __init__(self, ring: SlotRing, slot: Slot) -> None:
        super().__init__(slot.buffer.reader())
        self._ring = ring
        self._slot = slot
        ring.take(slot)

    def private(self) -> PrivateMapping:
        mapping = self.buffer.map_private()
        self._ring.take(self._slot)
        weakref.finalize(mapping, self._ring.give_back, self._slot).atexit = False
        return mapping

    def __del__(self) -> None:
        self._ring.give_back(self._slot)


class SlotRing:
    """Slots of equal size, reused when nobody needs them, and grown when all are in use.

    The loop *claims* a slot while it works on it; views handed to hooks *lease* it. A slot is free when it has
    neither. At most `max_leased` slots are kept by leases alone: beyond that `lease` returns None, so that a
    reader that hoards views costs a bounded amount of memory and never a slot the loop needs.
    """

    def __init__(self, nbytes: int, *, max_leased: int, name: str) -> None:
        self.nbytes = nbytes
        self.max_leased = max_leased
        self.name = name
        self._slots: list[Slot] = []
        self._withheld = 0
        # Views are made and dropped in any thread, finalizers run anywhere; appending to a deque is atomic.
        self._changes: deque[tuple[Slot, int]] = deque()
        self._counting = threading.RLock()  # also from a signal handler

    def claim(self) -> Slot:
        """A free slot, claimed for the loop."""
        self._count_leases()
        slot = next((slot for slot in self._slots if not slot.claims and not slot.leases), None)
        if slot is None:
            index = len(self._slots)
            slot = Slot(index, SharedBuffer.create(self.nbytes, f"{self.name}-{index}"))
            self._slots.append(slot)
        slot.claims += 1
        return slot

    def release(self, slot: Slot) -> None:
        """The loop gives back one claim."""
        if slot.claims < 1:
            raise ValueError(f"slot {slot.index} of ring {self.name!r} is released more often than claimed")
        slot.claims -= 1

    def lease(self, slot: Slot) -> Lease | None:
        """The right to read `slot` until the lease is garbage-collected; None when `max_leased` are out."""
        self._count_leases()
        if not slot.leases and self._held() >= self.max_leased:
            self._withheld += 1
            return None
        return Lease(self, slot)

    def take(self, slot: Slot) -> None:
        """One more view of `slot` lives, made by the loop or from another view. From any thread."""
        self._changes.append((slot, 1))

    def give_back(self, slot: Slot) -> None:
        """One view less. From any thread."""
        self._changes.append((slot, -1))

    def statistics(self) -> SlotRingStatistics:
        self._count_leases()
        return SlotRingStatistics(
            slots=len(self._slots),
            working=sum(slot.claims > 0 for slot in self._slots),
            leased=self._leased(),
            free=sum(not slot.claims and not slot.leases for slot in self._slots),
            max_leased=self.max_leased,
            nbytes=len(self._slots) * self.nbytes,
            withheld=self._withheld,
        )

    def _leased(self) -> int:
        return sum(slot.leases > 0 for slot in self._slots)

    def _held(self) -> int:
        """Slots that only leases keep; those the loop works with would be there anyway."""
        return sum(slot.leases > 0 and not slot.claims for slot in self._slots)

    def _count_leases(self) -> None:
        with self._counting:  # statistics may be asked for from any thread
            while self._changes:
                slot, change = self._changes.popleft()
                slot.leases += change
