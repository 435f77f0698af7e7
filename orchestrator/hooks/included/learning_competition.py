"""Whether the agents of a game compete, so that one's gain is another's loss: see `learning_watch`."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

from state.stats_tracker import AGENT_LIVES, EPISODE_RETURN, TEAM_RETURN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

EPOCHS, ENOUGH_EPOCHS = 100, 10
"""How many epochs with ends of episodes are remembered, and needed."""
OPPOSED = -0.5
"""Correlation of a type's returns with those of another, epoch by epoch, below which they compete."""
SHARED = 0.25
"""Variance of the games' returns, as a share of what independent agents would have, below which they compete."""


class Competition:
    """What the returns of the agents of games of many say of each other."""

    def __init__(self) -> None:
        self._means: deque[dict[str, float]] = deque(maxlen=EPOCHS)
        """By type, of an epoch's episodes."""
        self._spreads: deque[tuple[float, float]] = deque(maxlen=EPOCHS)
        """Variances of an epoch's games, and what they would be of independent agents. They are told from the returns
        of lives, and so say nothing where agents come back: what one agent gains is then divided among its lives."""
        self._come_back = False

    def memory(self) -> dict[str, Any]:
        return {"means": [dict(one) for one in self._means], "spreads": [list(one) for one in self._spreads]} | {
            "come_back": self._come_back
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        self._means.extend(dict(one) for one in memory["means"])
        self._spreads.extend((float(games), float(agents)) for games, agents in memory["spreads"])
        self._come_back = memory.get("come_back", False)

    def add(self, statistics: Mapping[str, Sequence[float]]) -> None:
        """The `rollout_stats` of an epoch."""
        teams, lives = statistics.get(TEAM_RETURN, ()), statistics.get(EPISODE_RETURN, ())
        self._come_back = self._come_back or AGENT_LIVES in statistics
        types = {kind: of for kind, of in returns_by_type(statistics).items() if of}
        if len(teams) > 1 and len(lives) > len(teams):
            # Within types: that one is given more than another says nothing of what they gain from each other.
            independent = sum(_variance(of) * len(of) for of in types.values()) / len(teams)
            self._spreads.append((_variance(teams), independent))
        means = {kind: sum(of) / len(of) for kind, of in types.items()}
        if len(means) > 1:
            self._means.append(means)

    @property
    def found(self) -> bool:
        """Whether agents compete, as far as is known."""
        return self._sums_are_fixed() or self._types_are_opposed()

    def _sums_are_fixed(self) -> bool:
        independent = sum(agents for _, agents in self._spreads)
        together = sum(games for games, _ in self._spreads)
        return not self._come_back and len(self._spreads) >= ENOUGH_EPOCHS and together < SHARED * independent

    def _types_are_opposed(self) -> bool:
        kinds = sorted({kind for means in self._means for kind in means})
        for index, first in enumerate(kinds):
            for second in kinds[index + 1 :]:
                pairs = [(means[first], means[second]) for means in self._means if first in means and second in means]
                if len(pairs) >= ENOUGH_EPOCHS and _correlation(pairs) < OPPOSED:
                    return True
        return False


def returns_by_type(statistics: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The returns of the episodes of each type of agents."""
    prefix = f"{EPISODE_RETURN}/"
    return {name.removeprefix(prefix): of for name, of in statistics.items() if name.startswith(prefix)}


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def _correlation(pairs: Iterable[tuple[float, float]]) -> float:
    """0 where one of the two does not change."""
    first, second = zip(*pairs, strict=True)
    means = sum(first) / len(first), sum(second) / len(second)
    together = sum((a - means[0]) * (b - means[1]) for a, b in zip(first, second, strict=True)) / len(first)
    scale = math.sqrt(_variance(first) * _variance(second))
    return together / scale if scale > 0 else 0.0
