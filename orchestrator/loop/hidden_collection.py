"""How old the collecting policy must be for collection to be hidden behind learning."""

from __future__ import annotations

import math
import statistics

_MARGIN = 1.15
"""Collecting may take so many times what it has taken: epochs differ, and messages take time too."""


class HiddenCollection:
    """Measures epochs, of which the first that each does is left out: much happens in it for the first time."""

    def __init__(self, minibatches: int) -> None:
        self._minibatches = minibatches
        self._collecting: list[float] = []
        self._learning: list[float] = []

    def collected(self, seconds: float) -> None:
        """A rollout has taken so long."""
        self._collecting.append(seconds)

    def learned(self, seconds: float) -> None:
        """The learning of an epoch has taken so long."""
        self._learning.append(seconds)

    def staleness(self) -> float:
        """The least, in epochs of learning, with which the medians say that learning need not wait; at most 1. It is a
        whole number of minibatches."""
        collecting, learning = self._collecting[1:], self._learning[1:]
        if not collecting or not learning:
            return 1.0
        needed = _MARGIN * statistics.median(collecting) / max(statistics.median(learning), 1e-9)
        minibatches = min(self._minibatches, max(1, math.ceil(needed * self._minibatches)))
        return round(minibatches / self._minibatches, 6)
