"""Notices observations whose numbers have very different scales, which networks learn badly from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gymnasium import spaces

from orchestrator.config.paths import PATH
from orchestrator.policies.cnn import ImageLayout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.environments.spaces import Array, Space

_SCALED = (np.dtype(np.uint8), np.dtype(np.bool_))
"""What networks bring to between 0 and 1 themselves."""
_LARGE = 10.0
_DIFFERENT = 100.0
"""A number that reaches 10, and 100 times what another one reaches, or a network's initial weights are made for (1)."""
_VERY_DIFFERENT = 1e4
"""Also where all numbers are small."""
_NOTHING = 1e-8
"""What stays below is taken for a number that does not change."""


class ObservationScales:
    """The largest absolute value of each number of an observation, in Boxes of numbers that are no images."""

    def __init__(self, space: Space) -> None:
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        self._largest = {
            name: np.zeros(part.shape, np.float32)
            for name, part in parts.items()
            if isinstance(part, spaces.Box) and part.dtype not in _SCALED and ImageLayout.of(part) is None
        }
        self._integers = any(parts[name].dtype != np.float32 for name in self._largest)

    def add(self, observations: Mapping[str, Array]) -> None:
        """Look at observations `[segments, horizon, ...]`, by key."""
        for name, largest in self._largest.items():
            np.maximum(largest, np.abs(observations[name]).max((0, 1)), out=largest)

    def problem(self) -> str | None:
        """What to warn of, to follow the environment's name; None where the scales are alike."""
        scales = {
            f"{name}[{', '.join(map(str, index))}]" if index else name: float(scale)
            for name, largest in self._largest.items()
            for index, scale in np.ndenumerate(largest)
            if scale > _NOTHING
        }
        if not scales:
            return None
        high, low = max(scales, key=scales.__getitem__), min(scales, key=scales.__getitem__)
        ratio = scales[high] / scales[low]
        large = scales[high] >= _LARGE and scales[high] >= _DIFFERENT * min(1.0, scales[low])
        if not large and ratio < _VERY_DIFFERENT:
            return None
        floats = "return integers as float32 and " if self._integers else ""  # which alone are normalized
        other = "" if low == high else f", {low} {scales[low]:.3g}"
        return (
            f"returns observations of very large or different scales: {high} reaches {scales[high]:.3g}{other};"
            f" networks learn badly from that: {floats}set {PATH.policy.normalize_observations} to true, or"
            " scale them to about 1 in the environment"
        )
