"""Statistics of the episodes that ended: gathered from info dictionaries, and followed over the rollouts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from state.frozen_mapping import FrozenMapping
from state.saved_values import SavedValues

EPISODE_RETURN = "episode_return"
EPISODE_LENGTH = "episode_length"
TEAM_RETURN = "team_return"
"""Of all agents of a game together."""
AGENT_LIVES = "agent_lives"
"""Of each agent that took part in a game, where one has come back."""

_NO_STATS: FrozenMapping[str, tuple[float, ...]] = FrozenMapping()


def accumulate_rollout_stats(infos: Iterable[Mapping[str, object]], into: dict[str, list[float]]) -> None:
    """Append the numbers of each info dictionary to the lists of `into`, under keys joined by "/".

    Numbers, booleans, and arrays or tensors of one element (numpy, torch, on any device) become floats.
    Everything else is ignored (strings, larger arrays, None), and so are keys that begin with "_", the masks
    of gymnasium's vector environments. Raises `ValueError` for an info that contains itself.
    """
    for info in infos:
        _accumulate(info, "", into)


def _accumulate(
    info: Mapping[str, object], prefix: str, into: dict[str, list[float]], around: tuple[object, ...] = ()
) -> None:
    for key, value in info.items():
        name = str(key)
        if name.startswith("_"):
            continue
        # In the order of likelihood: this runs for every entry of every info of every step that ends an episode.
        if isinstance(value, float):
            into.setdefault(prefix + name, []).append(float(value))
        elif isinstance(value, Mapping):
            inner, within = cast("Mapping[str, object]", value), (*around, info)
            if any(inner is one for one in within):
                raise ValueError(f"an info that contains itself, as {prefix + name!r}; leave that out of it")
            _accumulate(inner, f"{prefix}{name}/", into, within)
        elif (number := _as_float(value)) is not None:
            into.setdefault(prefix + name, []).append(number)


def _as_float(value: object) -> float | None:
    if not isinstance(value, (int, float)):
        # numpy's scalars and arrays and torch's tensors alike, without importing either.
        shape, item = getattr(value, "shape", None), getattr(value, "item", None)
        if item is None or not isinstance(shape, tuple) or math.prod(cast("tuple[int, ...]", shape)) != 1:
            return None
        value = item()
        if not isinstance(value, (int, float)):
            return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond float64
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsTracker:
    """What is known about episodes after some rollouts: an immutable value, `with_rollout` gives the next one.

    Raises `ValueError` for a window below 1.
    """

    rollout: Mapping[str, tuple[float, ...]] = _NO_STATS
    """The latest rollout: for each key its values, most often one of each episode that ended in it."""
    recent_returns: tuple[float, ...] = ()
    """Returns of the last `window` episodes, oldest first."""
    recent_lengths: tuple[float, ...] = ()
    """Lengths of the last `window` episodes in agent steps, oldest first."""
    episodes: int = 0
    """Episodes that ended in all rollouts."""
    agent_steps: int = 0
    """Agent steps of all rollouts."""
    window: int = 100
    """How many episodes the recent means are over."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"the window of a StatsTracker is {self.window} episodes, expected at least 1")
        rollout = {key: _floats(values) for key, values in self.rollout.items()}
        object.__setattr__(self, "rollout", FrozenMapping(rollout))
        object.__setattr__(self, "recent_returns", _floats(self.recent_returns[-self.window :]))
        object.__setattr__(self, "recent_lengths", _floats(self.recent_lengths[-self.window :]))

    def with_rollout(self, stats: Mapping[str, Sequence[float]], agent_steps: int) -> StatsTracker:
        """The tracker after one more rollout of `agent_steps` agent steps, in which the `stats` were gathered.

        The values under "episode_return" and "episode_length" enter the window; the former are the episodes.
        """
        returns = stats.get(EPISODE_RETURN, ())
        lengths = stats.get(EPISODE_LENGTH, ())
        return StatsTracker(
            rollout=cast("Mapping[str, tuple[float, ...]]", stats),
            recent_returns=(*self.recent_returns, *returns),
            recent_lengths=(*self.recent_lengths, *lengths),
            episodes=self.episodes + len(returns),
            agent_steps=self.agent_steps + agent_steps,
            window=self.window,
        )

    def means(self) -> Mapping[str, float]:
        """For each key of the latest rollout that has a value, the mean over its values."""
        return FrozenMapping({key: _mean(values) for key, values in self.rollout.items() if values})

    def recent_mean(self, key: str) -> float | None:
        """Mean of "episode_return" or "episode_length" over the last `window` episodes; None before the first.

        Raises `ValueError` for any other key.
        """
        if key == EPISODE_RETURN:
            recent = self.recent_returns
        elif key == EPISODE_LENGTH:
            recent = self.recent_lengths
        else:
            raise ValueError(f"no window is kept of {key!r}, only of {EPISODE_RETURN!r} and {EPISODE_LENGTH!r}")
        return _mean(recent) if recent else None

    def to_dict(self) -> dict[str, object]:
        """What `from_dict` reads, made of JSON's types."""
        return {
            "rollout": {key: list(values) for key, values in self.rollout.items()},
            "recent": {EPISODE_RETURN: list(self.recent_returns), EPISODE_LENGTH: list(self.recent_lengths)},
            "episodes": self.episodes,
            "agent_steps": self.agent_steps,
            "window": self.window,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> StatsTracker:
        """Read what `to_dict` wrote. Raises `ValueError` naming the entry that is missing or wrong."""
        saved = SavedValues(data, "episode statistics")
        recent = saved.number_lists("recent")
        return cls(
            rollout=saved.number_lists("rollout"),
            recent_returns=recent.get(EPISODE_RETURN, ()),
            recent_lengths=recent.get(EPISODE_LENGTH, ()),
            episodes=saved.integer("episodes"),
            agent_steps=saved.integer("agent_steps"),
            window=saved.integer("window"),
        )


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _mean(values: tuple[float, ...]) -> float:
    # Not fsum: it raises where a diverging environment returned both infinities.
    return sum(values) / len(values)
