"""Anonymous shared memory: buffers passed between processes by file descriptor, and rings of reusable slots.

Nothing has a name in the file system, so a killed process leaks nothing. Readers outside the training loop map
a slot privately (copy on write): numpy refuses to write through the read-only arrays, and a write that goes
around numpy (a torch tensor that aliases the array, say) changes pages of the reader's own and nobody else's.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections import deque
from dataclasses import dataclass
from typing import NoReturn

PAGE = mmap.PAGESIZE


class SharedBuffer:
    """Anonymous memory of `nbytes` bytes behind a file descriptor that this object owns.

    It travels to another process only through a worker's channel, which passes the descriptor along.
    """

    __slots__ = ("__weakref__", "_closed", "fd", "nbytes")

    def __init__(self, fd: int, nbytes: int) -> None:
        self.fd = fd
        self.nbytes = nbytes
        self._closed = weakref.finalize(self, os.close, fd)

    @classmethod
    def create(cls, nbytes: int, name: str = "slot") -> SharedBuffer:
        """Allocate zeroed memory; pages are taken from the system when they are first touched."""
        nbytes = max(PAGE, -(-nbytes // PAGE) * PAGE)
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create(f"orchestrator-{name}", os.MFD_CLOEXEC)
        else:  # macOS: an unlinked file behaves the same, only that the system may write it back
            with tempfile.TemporaryFile(prefix=f"orchestrator-{name}-") as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, nbytes)
        return cls(fd, nbytes)

    def map_shared(self) -> mmap.mmap:
        """A writable mapping that every process sees: for the slot's one writer and for workers that read it."""
        return mmap.mmap(self.fd, self.nbytes)

    def map_private(self) -> PrivateMapping:
        """A copy-on-write mapping: what is written to it stays with whoever wrote."""
        return PrivateMapping(self.fd, self.nbytes, access=mmap.ACCESS_COPY)

    def close(self) -> None:
        """Close the descriptor; mappings made from it stay valid."""
        self._closed()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SharedBuffer travels only as an argument of a worker's call, not by plain pickle")


class PrivateMapping(mmap.mmap):
    """A subclass only so that it takes weak references: arrays made from it keep it, and thus its lease, alive."""


class BufferView:
    """The right to read a buffer in the process that owns its content, without any promise that it stays."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: SharedBuffer) -> None:
        self.buffer = buffer

    def readonly(self) -> memoryview:
        """The bytes; nothing can make the view writable again."""
        return memoryview(self.buffer.map_private()).toreadonly()

    def private(self) -> PrivateMapping:
        """A mapping of its own for one caller, who may scribble over it."""
        return self.buffer.map_private()

    def __reduce__(self) -> tuple[type[BufferView], tuple[SharedBuffer]]:
        # In another process there is no lease to hold: whoever sends a view holds it until the answer.
        return BufferView, (self.buffer,)


@dataclass(frozen=True, slots=True)
class SlotRingStatistics:
    """`slots` exist, of which `working` are the loop's and `leased` are held by views outside the loop."""

    slots: int
    working: int
    leased: int
    max_leased: int
    nbytes: int
    withheld: int


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

    __slots__ = ("_mapping", "_ring", "_slot")

    def __init__(self, ring: SlotRing, slot: Slot) -> None:
        super().__init__(slot.buffer)
        self._ring = ring
        self._slot = slot
        self._mapping: PrivateMapping | None = None
        ring.take(slot)

    def readonly(self) -> memoryview:
        # Mapped when somebody looks: most states are looked at by nobody. Threads that look at the same time get a
        # mapping each, which is as good.
        mapping = self._mapping or self.private()
        self._mapping = mapping
        return memoryview(mapping).toreadonly()

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
        # Views are made and dropped in any thread, finalisers run anywhere; appending to a deque is atomic.
        self._changes: deque[tuple[Slot, int]] = deque()

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
        """One more view of `slot` lives, made by the loop or by who has one already. From any thread."""
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
        while self._changes:
            slot, change = self._changes.popleft()
            slot.leases += change
