"""Returns and lengths of episodes that may span several rollouts, and of those of several collectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np

from orchestrator.environments.agents import SINGLE_AGENT, agent_type
from orchestrator.environments.returned import Warn
from orchestrator.environments.spaces import Array
from state.stats_tracker import AGENT_LIVES, EPISODE_LENGTH, EPISODE_RETURN, TEAM_RETURN

_OWN = (EPISODE_RETURN, EPISODE_LENGTH, TEAM_RETURN, AGENT_LIVES)
_OF_METRICS = frozenset({"replayed_steps", "episodes", "recent_return", "recent_length"})
"""What else the metrics have beside the numbers of infos."""


class EpisodeCounter:
    """Adds up rewards and steps of the episodes of `games` with these `agents`: see `VectorEnvironment`."""

    def __init__(self, games: int, agents: tuple[str, ...] = SINGLE_AGENT) -> None:
        count = games * len(agents)
        self.returns = np.zeros(count, np.float64)
        """Of the episodes in progress."""
        self.lengths = np.zeros(count, np.int64)
        self.team_returns = np.zeros(games, np.float64)
        """Of the games in progress, where agents have names."""
        self.lives = np.zeros(count, np.int64)
        """Those that have ended in the games in progress, where agents have names."""
        types = () if agents == SINGLE_AGENT else sorted({agent_type(name) for name in agents})
        self._rows_of = {one: np.array([agent_type(name) == one for name in agents] * games) for one in types}

    def add(self, reward: Array, ended: Array, valid: Array, games_ended: Array) -> dict[str, list[float]]:
        """Count `[time, games * agents]` steps; the statistics of the episodes that ended, in the order of their ends,
        and where agents have names, those of each type and of the games that ended, as `games_ended` `[time, games]`
        says."""
        if not len(reward):
            return {EPISODE_RETURN: [], EPISODE_LENGTH: []}
        gains = np.where(valid, reward, 0.0)
        returns = np.cumsum(gains, axis=0, dtype=np.float64) + self.returns
        lengths = np.cumsum(valid, axis=0, dtype=np.int64) + self.lengths
        rows, steps = np.nonzero(ended.T)
        in_time = np.lexsort((rows, steps))
        ended_returns, self.returns = _per_episode(returns, rows, steps)
        ended_lengths, self.lengths = _per_episode(lengths, rows, steps)
        ended_returns = ended_returns[in_time]
        stats = {
            EPISODE_RETURN: ended_returns.tolist(),
            EPISODE_LENGTH: ended_lengths[in_time].astype(np.float64).tolist(),
        }
        for one, its_rows in self._rows_of.items():
            stats[f"{EPISODE_RETURN}/{one}"] = ended_returns[its_rows[rows[in_time]]].tolist()
        if self._rows_of:
            stats[TEAM_RETURN] = self._games(gains, games_ended)
            lives = self._lives_in_games(ended, games_ended)
            if np.any(lives > 1):
                stats[AGENT_LIVES] = lives[lives > 0].astype(np.float64).tolist()
        return stats

    def _games(self, gains: Array, ended: Array) -> list[float]:
        of_games = gains.reshape(*ended.shape, -1).sum(2, dtype=np.float64)
        games, steps = np.nonzero(ended.T)
        team_returns, self.team_returns = _per_episode(of_games.cumsum(axis=0) + self.team_returns, games, steps)
        return team_returns[np.lexsort((games, steps))].tolist()

    def _lives_in_games(self, ended: Array, games_ended: Array) -> Array:
        """Of each agent in each game that ended."""
        agents = ended.shape[1] // games_ended.shape[1]
        rows, steps = np.nonzero(np.repeat(games_ended, agents, axis=1).T)
        lives, self.lives = _per_episode(ended.cumsum(axis=0) + self.lives, rows, steps)
        return lives


def without_own_names(stats: Mapping[str, list[float]], warn: Warn) -> dict[str, list[float]]:
    """What infos say, but for what would be taken for statistics that are made here. `episode_return` and
    `episode_length`, which many environments give, need no warning: those that are made here take their places."""
    own = {name for name in stats if name.partition("/")[0] in _OWN or name in _OF_METRICS}
    own -= {EPISODE_RETURN, EPISODE_LENGTH}
    if own:
        warn(
            "names of infos",
            f"gives {sorted(own)} in its infos, which are names of the run's own statistics; they are left out: give"
            " them other names",
        )
    return {name: values for name, values in stats.items() if name not in own}


def _per_episode(totals: Array, rows: Array, steps: Array) -> tuple[Array, Array]:
    """Divides running totals at the ends of episodes (sorted by row): each episode's share, and what is left."""
    at_end = totals[steps, rows]
    same_row = rows[1:] == rows[:-1]
    shares = at_end.copy()
    shares[1:] -= np.where(same_row, at_end[:-1], 0)
    left = totals[-1].copy()
    last = np.append(~same_row, True)[: len(rows)]
    left[rows[last]] -= at_end[last]
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
