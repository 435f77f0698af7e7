"""Whether the returns of a run have become better: see `learning_problems`."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIRST_EPISODES, RECENT_EPISODES, ENOUGH_EPISODES = 32, 100, 20
SURE = 4.0
"""Standard errors by which the return must exceed that of the first episodes to count as progress."""
DOUBTFUL = 2.0
"""Those within which it counts as none; in between, it may or may not have begun."""
ROUNDING = 1e-12
"""Share of a mean below which differences are those of adding up."""


class Returns:
    """The returns of the first episodes and of the last ones, and whether these are better, noise considered."""

    def __init__(self, fresh: bool) -> None:
        self._fresh = fresh
        self._first: list[float] = []
        self._best = -math.inf
        self.recent: deque[float] = deque(maxlen=RECENT_EPISODES)
        self.any = False
        self.has_improved = False
        """Whether the return has ever been better than at the start."""
        self.good = False
        """Whether it is now, and has not fallen back by half of what was gained."""
        self.first_mean = self.recent_mean = self.gain = 0.0
        """`gain`: how much better, in standard errors."""

    def memory(self) -> dict[str, Any]:
        best = None if math.isinf(self._best) else self._best
        return {
            "first": list(self._first),
            "recent": list(self.recent),
            "best": best,
            "any": self.any,
            "improved": self.has_improved,
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        self._first = list(memory["first"])
        self.first_mean = sum(self._first) / len(self._first) if self._first else 0.0
        self._best = -math.inf if memory["best"] is None else memory["best"]
        self.any, self.has_improved = memory["any"], memory["improved"]
        self.recent.extend(memory["recent"])
        self._compare()

    @property
    def first_count(self) -> int:
        return len(self._first)

    @property
    def all_alike(self) -> bool:
        """Whether all episodes that are remembered have one return."""
        return self.known and min(self._first) == max(self._first) == min(self.recent) == max(self.recent)

    @property
    def known(self) -> bool:
        return len(self._first) >= FIRST_EPISODES and len(self.recent) >= ENOUGH_EPISODES

    def add(self, returns: Sequence[float]) -> None:
        finite = [value for value in returns if math.isfinite(value)]
        self.any = self.any or bool(finite)
        if not finite:
            return
        if len(self._first) < FIRST_EPISODES:
            self._first += finite[:RECENT_EPISODES]
            self.first_mean = sum(self._first) / len(self._first)
            return
        self.recent.extend(finite)
        self._compare()

    def _compare(self) -> None:
        if not self.known:
            return
        self.recent_mean = sum(self.recent) / len(self.recent)
        self._best = max(self._best, self.recent_mean)
        difference = self.recent_mean - self.first_mean
        error = math.sqrt(_variance(self._first) / len(self._first) + _variance(self.recent) / len(self.recent))
        error = max(error, ROUNDING * max(abs(self.first_mean), abs(self.recent_mean)))
        self.gain = difference / error if error > 0 else 0.0
        self.has_improved = self.has_improved or self.gain > SURE
        if self._fresh:
            self.good = self.gain > SURE and difference >= 0.5 * (self._best - self.first_mean)
        else:
            self.good = self.recent_mean >= self._best - 0.5 * abs(self._best)


def _variance(values: Sequence[float] | deque[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
