"""Which spaces are supported, what an agent sees of them, and the conversion to and from an environment's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Space = gymnasium.Space[Any]
Array = NDArray[Any]
Observation = Array | dict[str, Array]
"""A batch of observations: one array `[n, ...]`, or one per key of a Dict space."""

_SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of those"
_SUPPORTED_ACTIONS = "Discrete, MultiDiscrete with one axis, or Box of floats"
_SINGLE = ""  # the key of the only array of a space that is not a Dict

# What torch has no type for, or what would only slow a network down.
_AGENT_DTYPES = {"float16": "float32", "float64": "float32", "uint16": "int32", "uint32": "int64", "uint64": "int64"}


class InvalidEnvironment(ValueError):
    """An environment that is unknown, cannot be made, or has spaces that are not supported."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and dtype of one array of an observation, without the leading dimension."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def agent_observation_space(space: Space, environment: str) -> Space:
    """The space of the observations that agents get: floats are float32, and what is discrete begins at 0.

    Raises InvalidEnvironment naming the `environment`, its space and what is supported.
    """
    if isinstance(space, spaces.Dict):
        if not space.spaces:
            raise InvalidEnvironment(f"environment {environment!r} has an empty Dict as its observation space")
        return spaces.Dict({key: _agent_leaf(leaf, environment, f" of key {key!r}") for key, leaf in space.items()})
    return _agent_leaf(space, environment, "")


def agent_action_space(space: Space, environment: str) -> Space:
    """The space of the actions that agents take: Box is float32, and what is discrete begins at 0.

    Raises InvalidEnvironment naming the `environment`, its space and what is supported.
    """
    one_axis = not isinstance(space, spaces.MultiDiscrete) or space.nvec.ndim == 1
    floats = not isinstance(space, spaces.Box) or np.issubdtype(space.dtype, np.floating)
    if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.Box)) or not one_axis or not floats:
        raise InvalidEnvironment(
            f"environment {environment!r} has the action space {space}, which is not supported;"
            f" supported are {_SUPPORTED_ACTIONS}"
        )
    return _agent_leaf(space, environment, "")


def array_specs(space: Space) -> dict[str, ArraySpec]:
    """The arrays that make up an agent's observation, by key; the key is "" where the space is not a Dict."""
    leaves: Iterable[tuple[str, Space]] = space.items() if isinstance(space, spaces.Dict) else [(_SINGLE, space)]
    return {key: ArraySpec(tuple(leaf.shape or ()), np.dtype(leaf.dtype)) for key, leaf in leaves}


def arrays_of(observation: Observation) -> dict[str, Array]:
    """The arrays of an observation by key, as `array_specs` names them."""
    return observation if isinstance(observation, dict) else {_SINGLE: observation}


def observation_of(arrays: Mapping[str, Array]) -> Observation:
    """The observation that `arrays_of` took apart."""
    return arrays[_SINGLE] if _SINGLE in arrays else dict(arrays)


class ObservationConverter:
    """Turns an environment's own observations, single or batched, into those of `agent_observation_space`."""

    def __init__(self, space: Space) -> None:
        leaves = space.spaces if isinstance(space, spaces.Dict) else {_SINGLE: space}
        self.offsets = {key: _start(leaf) for key, leaf in leaves.items()}
        self._is_dict = isinstance(space, spaces.Dict)
        self._dtypes = {key: np.dtype(_agent_dtype(leaf)) for key, leaf in leaves.items()}

    def __call__(self, observation: Any) -> Observation:
        if self._is_dict:
            return {key: self._convert(key, observation[key]) for key in self._dtypes}
        return self._convert(_SINGLE, observation)

    def _convert(self, key: str, value: Any) -> Array:
        offset = self.offsets[key]
        array = np.asarray(value) if offset is None else np.asarray(value) - offset
        return array.astype(self._dtypes[key], copy=False)


class ActionConverter:
    """Turns a batch of agents' actions into actions of the environment: offset, or clipped to the bounds."""

    def __init__(self, space: Space) -> None:
        self._offset = _start(space)
        self._dtype = np.dtype(space.dtype)
        self._shape = tuple(space.shape or ())
        bounded = isinstance(space, spaces.Box)
        self._low = space.low.astype(np.float32) if bounded and np.isfinite(space.low).any() else None
        self._high = space.high.astype(np.float32) if bounded and np.isfinite(space.high).any() else None

    def __call__(self, actions: Array) -> Array:
        if actions.shape[1:] != self._shape:
            actions = actions.reshape(len(actions), *self._shape)
        if self._offset is not None:
            actions = actions + self._offset
        if self._low is not None:
            actions = np.maximum(actions, self._low)
        if self._high is not None:
            actions = np.minimum(actions, self._high)
        return actions.astype(self._dtype, copy=False)


def _agent_leaf(space: Space, environment: str, where: str) -> Space:
    match space:
        case spaces.Box():
            dtype = _agent_dtype(space)
            with np.errstate(over="ignore"):  # bounds beyond float32 become infinite
                low, high = space.low.astype(dtype), space.high.astype(dtype)
            return spaces.Box(low, high, dtype=np.dtype(dtype).type)
        case spaces.Discrete():
            return spaces.Discrete(int(space.n))
        case spaces.MultiDiscrete():
            return spaces.MultiDiscrete(space.nvec)
        case spaces.MultiBinary():
            return space
        case _:
            raise InvalidEnvironment(
                f"environment {environment!r} has the observation space {space}{where}, which is not supported;"
                f" supported are {_SUPPORTED_OBSERVATIONS}"
            )


def _agent_dtype(space: Space) -> str:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return "int64"
    name = np.dtype(space.dtype).name
    return _AGENT_DTYPES.get(name, name)


def _start(space: Space) -> Any:
    if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) or not np.any(space.start):
        return None
    return space.start
