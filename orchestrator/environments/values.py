"""Finds values that nothing can be learned from: floats that are not finite, choices that the space does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from orchestrator.environments.returned import Warn
from orchestrator.environments.spaces import Array, Path, Space, agent_dtype, agent_parts, of_key, start_of


class WrongValue(NamedTuple):
    """A value that is not as it should be, at `place` in the array that was checked."""

    place: tuple[int, ...]
    value: object
    expected: str


class ValueCheck:
    """Checks the arrays of agents' observations against the environment's own `space`; cheap for a whole rollout.

    Integers of a Box outside of its bounds are warned of. Its floats may leave them: many environments' do, and nothing
    depends on it.
    """

    def __init__(self, space: Space, warn: Warn, of_part: Callable[[Path], str] = of_key) -> None:
        """`of_part` names a part of the observation in messages."""
        parts = agent_parts(space)
        self._limits = {name: _Limits(leaf) for name, (_, leaf) in parts.items()}
        self._of_part = {name: of_part(path) for name, (path, _) in parts.items()}
        self._warn = warn

    def named(self, key: str) -> str:
        """What messages call the part `key`."""
        return f"observation{self._of_part[key]}"

    def observation(self, key: str, array: Array) -> WrongValue | None:
        """The first wrong value in the part `key` `[..., *shape]`; None where there is none."""
        if array.dtype.kind == "f":
            return not_finite(array)
        limits = self._limits[key]
        found = limits.broken_by(array)
        if found is not None and not limits.strict:
            self._warn(
                f"bounds of {self.named(key)}",
                f"returns observations{self._of_part[key]} that are not within its bounds: {found.value},"
                f" expected {found.expected}; correct the bounds",
            )
            return None
        return found


def not_finite(array: Array) -> WrongValue | None:
    """The first value of an array of floats that is not finite."""
    # The extremes are NaN if anything is, and need no temporary of the array's size.
    if not array.size or (np.isfinite(array.min()) and np.isfinite(array.max())):
        return None
    index = tuple(np.argwhere(~np.isfinite(array))[0])
    return WrongValue(index, array[index], "finite numbers")


class _Limits:
    """The lowest and highest integers of a part of an observation, as agents see it."""

    def __init__(self, space: Space) -> None:
        self.strict = not isinstance(space, spaces.Box)
        self._dimensions = len(space.shape or ())
        start = start_of(space)
        self._start: Any = 0 if start is None else start
        self._low: Any = 0
        match space:
            case spaces.Discrete():
                self._high: Any = int(space.n) - 1
            case spaces.MultiDiscrete():
                self._high = np.asarray(space.nvec, np.int64) - 1
            case spaces.Box():
                self._low, self._high = space.low, space.high
            case _:
                self._high = 1
        dtype = np.dtype(agent_dtype(space))
        self._any = not self.strict and (
            dtype.kind not in "iu"
            or bool(np.all(self._low <= np.iinfo(dtype).min) and np.all(self._high >= np.iinfo(dtype).max))
        )

    def broken_by(self, array: Array) -> WrongValue | None:
        if self._any or not array.size:
            return None
        leading = tuple(range(array.ndim - self._dimensions))
        if np.all(array.min(leading) >= self._low) and np.all(array.max(leading) <= self._high):
            return None
        within = (array >= self._low) & (array <= self._high)
        index = tuple(np.argwhere(~within)[0])
        shape = np.shape(within)
        low, high, start = (np.broadcast_to(limit, shape)[index] for limit in (self._low, self._high, self._start))
        begin = int(start)
        expected = f"{int(low) + begin} to {int(high) + begin}, as the observation_space says"
        return WrongValue(index, int(array[index]) + begin, expected)
