"""Observations of any supported space as plain vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from orchestrator.policies.network import NetworkError, Observation


class FlatObservation:
    """Turns observations `[n, ...]` into float32 vectors `[n, size]`; a Dict's parts are joined in order of their keys.

    What is discrete becomes one-hot, uint8 is divided by 255, everything else is taken as it is.
    Raises NetworkError for a space that it does not know.
    """

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self._keys: tuple[str, ...] | None = None
        parts: list[gymnasium.Space[Any]] = [space]
        if isinstance(space, spaces.Dict):
            self._keys = tuple(sorted(space.spaces))
            parts = [space[key] for key in self._keys]
        self._flatteners = [_flattener(part) for part in parts]
        self.size = sum(_size(part) for part in parts)
        """Length of the vectors."""
        self.identity = self._keys is None and _is_vector(space)
        """Whether observations are such vectors already, and the call can be left out."""

    def __call__(self, observation: Observation) -> Tensor:
        if isinstance(observation, Tensor):
            return self._flatteners[0](observation)
        assert self._keys is not None, "a dict was observed where the space is not a Dict"
        parts = [flatten(observation[key]) for key, flatten in zip(self._keys, self._flatteners, strict=True)]
        return torch.cat(parts, 1)


def _is_vector(space: gymnasium.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.float32 and len(space.shape) == 1


def _size(space: gymnasium.Space[Any]) -> int:
    match space:
        case spaces.Box() | spaces.MultiBinary():
            return math.prod(space.shape)
        case spaces.Discrete():
            return int(space.n)
        case spaces.MultiDiscrete():
            return int(space.nvec.sum())
        case _:
            raise NetworkError(
                f"the observation space {space} is not supported; supported are Box, Discrete, MultiDiscrete,"
                " MultiBinary, and a Dict of those"
            )


def _flattener(space: gymnasium.Space[Any]) -> Callable[[Tensor], Tensor]:
    if _is_vector(space):
        return _unchanged
    if isinstance(space, spaces.Discrete):
        return _OneHot((int(space.start),), (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        starts = np.broadcast_to(space.start, space.nvec.shape).flatten()
        return _OneHot(tuple(int(start) for start in starts), tuple(int(n) for n in space.nvec.flatten()))
    return _bytes if space.dtype == np.uint8 else _numbers


def _unchanged(x: Tensor) -> Tensor:
    return x


def _numbers(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1).float()


def _bytes(x: Tensor) -> Tensor:
    return _numbers(x) * (1.0 / 255.0)


class _OneHot:
    def __init__(self, starts: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        self._ranges = tuple((start, start + size) for start, size in zip(starts, sizes, strict=True))

    def __call__(self, x: Tensor) -> Tensor:
        # A comparison, because torch's one_hot reads its argument back from the device to check it.
        columns = x.reshape(x.shape[0], -1).split(1, 1)
        hot = [
            column == torch.arange(begin, end, device=x.device)
            for column, (begin, end) in zip(columns, self._ranges, strict=True)
        ]
        return (hot[0] if len(hot) == 1 else torch.cat(hot, 1)).float()
