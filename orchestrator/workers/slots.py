"""How slots of shared memory are named in messages: by index, with the memory itself only the first time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

    from state.shared_memory import SharedBuffer, Slot


class SlotRef(NamedTuple):
    """A slot of the ring called `ring`; `buffer` comes along when the worker has not met the slot yet."""

    ring: str
    place: int
    buffer: SharedBuffer | None


class SlotSender:
    """The host's side: remembers which slots one worker has met."""

    def __init__(self) -> None:
        self._met: set[tuple[str, int]] = set()

    def ref(self, ring: str, slot: Slot) -> SlotRef:
        key = ring, slot.index
        new = key not in self._met
        self._met.add(key)
        return SlotRef(ring, slot.index, slot.buffer if new else None)


class SlotMemory:
    """The worker's side: keeps each slot mapped, since mapping it anew would touch every page again."""

    def __init__(self, mapped: Callable[[mmap.mmap], None] = lambda memory: None) -> None:
        """`mapped` is called with memory that was not there before."""
        self._on_mapped = mapped
        self._mapped: dict[tuple[str, int], tuple[SharedBuffer, mmap.mmap]] = {}

    def memory(self, ref: SlotRef) -> mmap.mmap:
        """The slot's bytes, writable and shared with every other process."""
        return self._entry(ref)[1]

    def buffer(self, ref: SlotRef) -> SharedBuffer:
        return self._entry(ref)[0]

    def _entry(self, ref: SlotRef) -> tuple[SharedBuffer, mmap.mmap]:
        key = ref.ring, ref.place
        if ref.buffer is not None:
            self._mapped[key] = ref.buffer, ref.buffer.map_shared()
            self._on_mapped(self._mapped[key][1])
        return self._mapped[key]
