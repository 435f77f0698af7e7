"""The published policies that the training loop still needs: which epoch is collected with which, where each of them
is, and views of them for hooks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from orchestrator.loop.rings import POLICY
from state.policy_point import PolicyPoint
from state.policy_snapshot import PolicySnapshot
from state.shared_memory import BufferView, SlotRing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.policies import Policy
    from state.policy_snapshot import PolicyLayout
    from state.shared_memory import Slot, SlotRingStatistics

WHOLE_EPOCHS = 6
"""Epochs at the beginning of a run whose staleness is rounded up to whole versions: as long as `auto` measures."""


def behavior_of(epoch: int, staleness: float, minibatches: int) -> PolicyPoint:
    """What an epoch is collected with, of `minibatches` each: the policy that is so much of an epoch's learning older
    than the one that it is learned from with."""
    versions = math.ceil(staleness)
    early = 0 if epoch < WHOLE_EPOCHS else round((versions - staleness) * minibatches)
    return PolicyPoint(epoch - versions, early) if early < minibatches else PolicyPoint(epoch - versions + 1)


class PolicyVersions:
    """Epoch k is collected with the policy `behavior_of(k)` exactly, or with `first` where that is later: the oldest
    there was at the beginning, which is version 0, or what a run was resumed with. At most `max_leased` slots are kept
    by views alone."""

    def __init__(
        self,
        layout: PolicyLayout,
        factory: Callable[[], Policy],
        *,
        staleness: float | Literal["auto"],
        minibatches: int,
        max_leased: int,
    ) -> None:
        self._layout = layout
        self._factory = factory
        self._minibatches = minibatches
        self._ring = SlotRing(layout.nbytes, max_leased=max_leased, name=POLICY)
        self._slots: dict[PolicyPoint, Slot] = {}
        self._first: PolicyPoint | None = None
        self._staleness = 1.0 if staleness == "auto" else staleness
        self.fixed = staleness != "auto"
        """Whether the staleness is known; until then, that of the first `WHOLE_EPOCHS` is."""

    def __contains__(self, point: PolicyPoint) -> bool:
        return point in self._slots

    def __iter__(self) -> Iterator[PolicyPoint]:
        return iter(self._slots)

    @property
    def newest(self) -> PolicyPoint:
        """The newest version."""
        return max(point for point in self._slots if not point.minibatches)

    def fix(self, staleness: float) -> None:
        """Set the staleness, to at most 1, before epoch `WHOLE_EPOCHS - 1` is learned from."""
        self._staleness, self.fixed = staleness, True

    def knows(self, epoch: int) -> bool:
        """Whether it is known yet what an epoch is collected with."""
        return self.fixed or epoch < WHOLE_EPOCHS

    def of_epoch(self, epoch: int) -> PolicyPoint:
        """What an epoch is collected with. To be asked once the first policies are there, of one that is known."""
        assert self._first is not None
        return max(self._first, behavior_of(epoch, self._staleness, self._minibatches))

    def early_point(self, epoch: int) -> PolicyPoint | None:
        """The policy amid the learning of `epoch` that a later one is collected with; None where there is none."""
        point = behavior_of(epoch + math.ceil(self._staleness), self._staleness, self._minibatches)
        return point if point.minibatches and point.version == epoch else None

    def statistics(self) -> SlotRingStatistics:
        """Of the slots that policies are in."""
        return self._ring.statistics()

    def claim(self) -> Slot:
        """Where a further policy can be published to."""
        return self._ring.claim()

    def add(self, point: PolicyPoint, slot: Slot) -> None:
        """A policy is in a claimed slot."""
        self._slots[point] = slot
        self._first = point if self._first is None else self._first

    def slot(self, point: PolicyPoint) -> Slot:
        return self._slots[point]

    def needed_after(self, epochs: int) -> list[PolicyPoint]:
        """What is older than the version after so many epochs, and further ones are collected with."""
        older = sorted(point for point in self._slots if point < PolicyPoint(epochs))
        last = math.ceil(self._staleness)  # epochs after its version is what a policy serves at the latest
        return [
            point
            for point in older
            if any(self.of_epoch(max(epochs, point.version + after)) == point for after in (last - 1, last))
        ]

    def forget(self, before: PolicyPoint) -> None:
        """Release those before one that no further epoch is collected with, but never the newest."""
        before = min(before, self.newest)
        for point in [point for point in self._slots if point < before]:
            self._ring.release(self._slots.pop(point))

    def view(self, point: PolicyPoint) -> PolicySnapshot | None:
        """A policy as hooks see it; None while as many are held as may be."""
        lease = self._ring.lease(self._slots[point])
        return None if lease is None else self._snapshot(point, lease)

    def view_or_copy(self, point: PolicyPoint) -> PolicySnapshot:
        """For what must not come without: a view, or where too many are held, a copy."""
        return self.view(point) or self.copy(point)

    def copy(self, point: PolicyPoint) -> PolicySnapshot:
        """As `view`, in separate memory."""
        copy = self._slots[point].buffer.copy("policy-copy")
        return self._snapshot(point, BufferView(copy.reader()))

    def _snapshot(self, point: PolicyPoint, memory: BufferView) -> PolicySnapshot:
        return PolicySnapshot(point.version, self._layout, self._factory, memory, point.minibatches)
