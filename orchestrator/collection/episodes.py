"""Returns and lengths of episodes that may span several rollouts, and of those of several collectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np

from orchestrator.environments.spaces import Array


class EpisodeCounter:
    """Adds up rewards and steps of the episodes of `count` copies of an environment."""

    def __init__(self, count: int) -> None:
        self.returns = np.zeros(count, np.float64)
        """Of the episodes in progress."""
        self.lengths = np.zeros(count, np.int64)

    def add(self, reward: Array, ended: Array, valid: Array) -> tuple[list[float], list[float]]:
        """Count `[time, count]` steps; returns and lengths of the episodes that ended, in the order of their ends."""
        if not len(reward):
            return [], []
        returns = np.cumsum(np.where(valid, reward, 0.0), axis=0, dtype=np.float64) + self.returns
        lengths = np.cumsum(valid, axis=0, dtype=np.int64) + self.lengths
        copies, steps = np.nonzero(ended.T)
        in_time = np.lexsort((copies, steps))
        ended_returns, self.returns = _per_episode(returns, copies, steps)
        ended_lengths, self.lengths = _per_episode(lengths, copies, steps)
        return ended_returns[in_time].tolist(), ended_lengths[in_time].astype(np.float64).tolist()


def _per_episode(totals: Array, copies: Array, steps: Array) -> tuple[Array, Array]:
    """Divides running totals at the ends of episodes (sorted by copy): each episode's share, and what is left."""
    at_end = totals[steps, copies]
    same_copy = copies[1:] == copies[:-1]
    shares = at_end.copy()
    shares[1:] -= np.where(same_copy, at_end[:-1], 0)
    left = totals[-1].copy()
    last = np.append(~same_copy, True)[: len(copies)]
    left[copies[last]] -= at_end[last]
    return shares, left


def merged_in_time(collectors: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """The statistics of all collectors, whose rollouts took place at the same time: each list in the order of time, as
    nearly as the places in the collectors' lists tell."""
    if len(collectors) == 1:
        return dict(collectors[0])
    placed: dict[str, list[tuple[float, float]]] = {}
    for statistics in collectors:
        for name, values in statistics.items():
            places = ((index + 0.5) / len(values) for index in range(len(values)))
            placed.setdefault(name, []).extend(zip(places, values, strict=True))
    return {name: [value for _, value in sorted(values, key=itemgetter(0))] for name, values in placed.items()}
