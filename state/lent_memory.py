"""Views of buffers for readers other than their owner, such as losses: what they keep outlives the content."""

from __future__ import annotations

from weakref import WeakSet, WeakValueDictionary

import numpy as np

from state.shared_memory import PAGE, BufferView, PrivateMapping, SharedBuffer


class Lender:
    """Gives views that stay as they are also when their buffer is used again.

    A lease would do so by holding up the buffer, but its ring is in another process. So whatever is still held when
    the buffer is about to change is copied then.
    """

    def __init__(self) -> None:
        self._views: WeakSet[_LentView] = WeakSet()
        self._mappings: WeakValueDictionary[int, PrivateMapping] = WeakValueDictionary()  # by identity

    def view(self, buffer: SharedBuffer) -> BufferView:
        """A view of what `buffer` holds until the next `settle`."""
        view = _LentView(buffer, self._mappings)
        self._views.add(view)
        return view

    def settle(self) -> None:
        """To be called before a buffer changes: whatever is held of it is copied first."""
        for view in list(self._views):
            view.settle()
        for mapping in list(self._mappings.values()):
            # A page of a private mapping is copied when it is first written to.
            pages = np.frombuffer(memoryview(mapping), dtype=np.uint8)[::PAGE]
            pages += 0
        self._views.clear()
        self._mappings.clear()


class _LentView(BufferView):
    __slots__ = ("__weakref__", "_lent")

    def __init__(self, buffer: SharedBuffer, lent: WeakValueDictionary[int, PrivateMapping]) -> None:
        super().__init__(buffer.reader())
        self._lent = lent

    def private(self) -> PrivateMapping:
        mapping = self.buffer.map_private()
        self._lent[id(mapping)] = mapping  # for nothing once the view has its own buffer
        return mapping

    def settle(self) -> None:
        self.buffer = self.buffer.copy("kept").reader()
