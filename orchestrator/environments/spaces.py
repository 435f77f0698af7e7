"""Which spaces are supported, what an agent sees of them, and the conversion to and from an environment's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from state.error import OrchestratorError

Space = gymnasium.Space[Any]
Array = NDArray[Any]
ObservationArrays = Array | dict[str, Array]
"""A batch of observations: one array `[n, ...]`, or one per key of a Dict space."""

_SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of those"
_SUPPORTED_ACTIONS = "Discrete, MultiDiscrete with one axis, or Box of numbers"
_WRAP = "wrap the environment in one that converts (gymnasium.wrappers has some)"
_SINGLE = ""  # the key of the only array of a space that is not a Dict

# What torch has no type for.
_AGENT_INTEGERS = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}


class InvalidEnvironment(OrchestratorError, ValueError):
    """An environment that is unknown, cannot be made, or has spaces that are not supported."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and dtype of one array of an observation, without the leading dimension."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def agent_observation_space(space: Space, environment: str) -> Space:
    """The space of the observations that agents get: floats are float32, what is discrete begins at 0, keys are texts.

    Raises InvalidEnvironment naming the `environment`, its space and what is supported.
    """
    if not isinstance(space, spaces.Dict):
        return _agent_leaf(space, environment, "")
    parts = agent_parts(space)
    if not parts:
        raise InvalidEnvironment(
            f"environment {environment!r} has an empty Dict as its observation space; give it a key"
        )
    if len(parts) < len(space.spaces) or _SINGLE in parts:
        raise InvalidEnvironment(
            f"environment {environment!r} has the keys {list(space.spaces)} in its observation space; expected keys"
            " that are different as texts, and none that is empty"
        )
    return spaces.Dict(
        {name: _agent_leaf(leaf, environment, f" of key {key!r}") for name, (key, leaf) in parts.items()}
    )


def agent_action_space(space: Space, environment: str) -> Space:
    """The space of the actions that agents take: Box is float32 (also of integers), what is discrete begins at 0.

    Raises InvalidEnvironment naming the `environment`, its space and what is supported.
    """
    one_axis = not isinstance(space, spaces.MultiDiscrete) or space.nvec.ndim == 1
    numbers = not isinstance(space, spaces.Box) or np.issubdtype(space.dtype, np.number)
    if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.Box)) or not one_axis or not numbers:
        raise InvalidEnvironment(
            f"environment {environment!r} has the action space {space}, which is not supported;"
            f" supported are {_SUPPORTED_ACTIONS}; {_WRAP}"
        )
    return _float_box(space) if isinstance(space, spaces.Box) else _agent_leaf(space, environment, "")


def agent_parts(space: Space) -> dict[str, tuple[Any, Space]]:
    """The environment's key and space of each array of an observation, by the agent's key.

    Agents' keys are texts, as names of experience fields must be: str() of the environment's. Where the space is not a
    Dict, there is one array with the key "".
    """
    if not isinstance(space, spaces.Dict):
        return {_SINGLE: (_SINGLE, space)}
    return {str(key): (key, leaf) for key, leaf in space.spaces.items()}


def array_specs(space: Space) -> dict[str, ArraySpec]:
    """The arrays that make up an agent's observation, by key; the key is "" where the space is not a Dict."""
    leaves: Iterable[tuple[str, Space]] = space.items() if isinstance(space, spaces.Dict) else [(_SINGLE, space)]
    return {key: ArraySpec(tuple(leaf.shape or ()), np.dtype(leaf.dtype)) for key, leaf in leaves}


def arrays_of(observation: ObservationArrays) -> dict[str, Array]:
    """The arrays of an observation by key, as `array_specs` names them."""
    return observation if isinstance(observation, dict) else {_SINGLE: observation}


def observation_of(arrays: Mapping[str, Array]) -> ObservationArrays:
    """The observation that `arrays_of` took apart."""
    return arrays[_SINGLE] if _SINGLE in arrays else dict(arrays)


class ActionConverter:
    """Turns a batch of agents' actions into actions that are in the environment's own space: offset, or of its dtype
    (rounded where that is of integers) and clipped to its bounds.

    They have separate memory: environments may change the actions that they are given, or keep them.
    """

    def __init__(self, space: Space) -> None:
        self._offset = start_of(space)
        self._dtype = np.dtype(space.dtype)
        self._shape = tuple(space.shape or ())
        self._low: Array | None = None
        self._high: Array | None = None
        if isinstance(space, spaces.Box):
            self._low = space.low if np.isfinite(space.low).any() else None
            self._high = space.high if np.isfinite(space.high).any() else None

    def __call__(self, actions: Array) -> Array:
        if actions.shape[1:] != self._shape:
            actions = actions.reshape(len(actions), *self._shape)
        if self._dtype.kind in "iu" and self._low is not None and self._high is not None:
            return self._rounded(actions, self._low, self._high)
        if self._offset is not None:
            actions = actions.astype(self._dtype) + self._offset  # int64 and uint64 would make float64
        if actions.dtype != self._dtype:
            with np.errstate(over="ignore"):  # what is beyond float16 becomes infinite, and then a bound
                actions = actions.astype(self._dtype)
        else:
            actions = actions.copy()
        if self._low is not None:
            actions = np.maximum(actions, self._low)
        if self._high is not None:
            actions = np.minimum(actions, self._high)
        return actions

    def _rounded(self, actions: Array, low: Array, high: Array) -> Array:
        # Float64 cannot say every bound of 64 bits, but what lies between two bounds as it says them, it can.
        wanted = np.rint(actions, dtype=np.float64)
        result = np.where(wanted >= high.astype(np.float64), high, low)
        inside = (wanted > low.astype(np.float64)) & (wanted < high.astype(np.float64))
        result[inside] = wanted[inside].astype(self._dtype)
        return result


def _agent_leaf(space: Space, environment: str, where: str) -> Space:
    match space:
        case spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return _float_box(space)
        case spaces.Box():
            dtype = np.dtype(agent_dtype(space))
            low, high = (
                np.minimum(bound, np.iinfo(np.int64).max).astype(dtype) if space.dtype == np.uint64 else bound
                for bound in (space.low, space.high)
            )
            return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)
        case spaces.Discrete():
            return spaces.Discrete(int(space.n))
        case spaces.MultiDiscrete():
            return spaces.MultiDiscrete(space.nvec)
        case spaces.MultiBinary():
            return spaces.MultiBinary(space.n)
        case _:
            raise InvalidEnvironment(
                f"environment {environment!r} has the observation space {space}{where}, which is not supported;"
                f" supported are {_SUPPORTED_OBSERVATIONS}; {_WRAP}"
            )


def _float_box(space: spaces.Box) -> spaces.Box:
    """A Box of float32; finite bounds beyond that become its largest numbers."""
    limit = np.finfo(np.float32).max
    low, high = (
        np.where(np.isinf(bound), bound, np.clip(bound.astype(np.float64), -limit, limit)).astype(np.float32)
        for bound in (space.low, space.high)
    )
    return spaces.Box(low, high, dtype=np.float32)


def agent_dtype(space: Space) -> str:
    """The dtype that agents get the numbers of a supported space in."""
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return "int64"
    if np.issubdtype(space.dtype, np.floating):
        return "float32"
    name = np.dtype(space.dtype).name
    return _AGENT_INTEGERS.get(name, name)


def start_of(space: Space) -> Any:
    """What agents' numbers of a supported space are less than the environment's; None where they are the same."""
    if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) or not np.any(space.start):
        return None
    return space.start
