"""Views of buffers for readers beside the owner of these, such as losses: what they keep outlives the content."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from state.shared_memory import PAGE, BufferView, PrivateMapping

if TYPE_CHECKING:
    from state.shared_memory import SharedBuffer


class Lender:
    """Gives views that stay as they are also when their buffer is used again.

    A lease would do so by holding up the buffer, but its ring is in another process. So what is still held when
    the buffer is about to change, which is rare, becomes a copy then.
    """

    def __init__(self) -> None:
        self._views: WeakSet[_LentView] = WeakSet()
        self._mappings: WeakSet[PrivateMapping] = WeakSet()

    def view(self, buffer: SharedBuffer) -> BufferView:
        """A view of what `buffer` holds until the next `settle`."""
        view = _LentView(buffer, self._mappings)
        self._views.add(view)
        return view

    def settle(self) -> None:
        """To be called before a buffer changes: whatever is held of it gets memory of its own."""
        for view in list(self._views):
            view.settle()
        for mapping in list(self._mappings):
            # A page of a private mapping is copied when it is first written to.
            for begin in range(0, len(mapping), PAGE):
                mapping[begin] = mapping[begin]
        self._views.clear()
        self._mappings.clear()


class _LentView(BufferView):
    __slots__ = ("__weakref__", "_lent", "_own")

    def __init__(self, buffer: SharedBuffer, lent: WeakSet[PrivateMapping]) -> None:
        super().__init__(buffer)
        self._lent = lent
        self._own: PrivateMapping | None = None

    def settle(self) -> None:
        self._own = self.private()

    def readonly(self) -> memoryview:
        return memoryview(self._own or self.private()).toreadonly()

    def private(self) -> PrivateMapping:
        if self._own is None:
            mapping = self.buffer.map_private()
            self._lent.add(mapping)
        else:
            mapping = PrivateMapping(-1, len(self._own))
            mapping[:] = self._own
        return mapping
