"""The published versions of the policy that the training loop still needs: which epoch is collected with which, where
each of them is, and views of them for hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.loop.worker_group import POLICY
from state.policy_snapshot import PolicySnapshot
from state.shared_memory import BufferView, SlotRing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.policies import Policy
    from state.policy_snapshot import PolicyLayout
    from state.shared_memory import Slot


class PolicyVersions:
    """Epoch k is collected with version max(first, k - staleness) exactly, where `first` is the oldest there was at the
    beginning: 0, or what a run was resumed with. At most `max_leased` slots are kept by views alone."""

    def __init__(self, layout: PolicyLayout, factory: Callable[[], Policy], *, staleness: int, max_leased: int) -> None:
        self._layout = layout
        self._factory = factory
        self._staleness = staleness
        self._ring = SlotRing(layout.nbytes, max_leased=max_leased, name=POLICY)
        self._slots: dict[int, Slot] = {}
        self._first: int | None = None

    def __contains__(self, version: int) -> bool:
        return version in self._slots

    def __iter__(self) -> Iterator[int]:
        return iter(self._slots)

    @property
    def newest(self) -> int:
        return max(self._slots)

    def of_epoch(self, epoch: int) -> int:
        """The version that an epoch is collected with. To be asked once the first versions are there."""
        assert self._first is not None
        return max(self._first, epoch - self._staleness)

    def claim(self) -> Slot:
        """Where a further version can be published to."""
        return self._ring.claim()

    def add(self, version: int, slot: Slot) -> None:
        """A version is in a claimed slot."""
        self._slots[version] = slot
        self._first = version if self._first is None else self._first

    def slot(self, version: int) -> Slot:
        return self._slots[version]

    def forget(self, before: int) -> None:
        """Release the versions before one that no further epoch is collected with, but never the newest."""
        before = min(before, self.newest)
        for version in [version for version in self._slots if version < before]:
            self._ring.release(self._slots.pop(version))

    def view(self, version: int) -> PolicySnapshot | None:
        """A version as hooks see it; None while as many are held as may be."""
        lease = self._ring.lease(self._slots[version])
        return None if lease is None else PolicySnapshot(version, self._layout, self._factory, lease)

    def view_or_copy(self, version: int) -> PolicySnapshot:
        """For what must not come without: a view, or where too many are held, a copy."""
        return self.view(version) or self.copy(version)

    def copy(self, version: int) -> PolicySnapshot:
        """As `view`, in separate memory."""
        copy = self._slots[version].buffer.copy("policy-copy")
        return PolicySnapshot(version, self._layout, self._factory, BufferView(copy.reader()))
