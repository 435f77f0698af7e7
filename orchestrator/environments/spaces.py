"""Which spaces are supported, what an agent sees of them, and the conversion to and from an environment's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
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
Path = tuple[Any, ...]
"""The keys of Dicts and the places in Tuples that lead to a part of an observation."""

_SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dicts and Tuples of those"
_SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, MultiBinary, and Box of numbers"
_OBSERVED_INSTEAD = {
    spaces.Text: "give the text as numbers, such as a MultiDiscrete with one choice of a character for each place",
    spaces.Graph: "give nodes and edges as Boxes of the largest size, with a MultiBinary that says which there are",
    spaces.Sequence: "give a Box of the greatest length, with a Discrete that says how many entries count",
    spaces.OneOf: "give a Dict of all alternatives, with a Discrete that says which one counts",
}
_WRAP = "wrap the environment in one that converts (gymnasium.wrappers has some)"
_JOIN = "make it one MultiDiscrete or one Box, and take that apart in a gymnasium.wrappers.TransformAction"
_SINGLE = ""  # the key of the only array of a space that is neither a Dict nor a Tuple

# What torch has no type for.
_AGENT_INTEGERS = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}


class InvalidEnvironment(OrchestratorError, ValueError):
    """An environment that is unknown, cannot be made, or has spaces that are not supported."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and dtype of one array of an observation, without the leading dimension."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def of_key(path: Path) -> str:
    """What names a part of an observation in a message: " of key 'eyes/left'", and nothing for the whole."""
    if not path:
        return ""
    return f" of key {path[0] if len(path) == 1 else '/'.join(map(str, path))!r}"


def agent_observation_space(space: Space, environment: str, of_part: Callable[[Path], str] = of_key) -> Space:
    """The space of the observations that agents get: floats are float32, what is discrete begins at 0, and Dicts and
    Tuples within each other are one Dict, whose keys are their paths as texts ("eyes/left", "0").

    Raises InvalidEnvironment naming the `environment`, its space, that `of_part` where it is in a Dict or Tuple, and
    what is supported.
    """
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return _agent_leaf(space, environment, "")
    parts = agent_parts(space)
    if not parts:
        kind = type(space).__name__
        raise InvalidEnvironment(
            f"environment {environment!r} has an empty {kind} as its observation space; give it a part"
        )
    paths = [path for path, _ in _leaves(space)]
    if len(parts) < len(paths) or _SINGLE in parts:
        raise InvalidEnvironment(
            f"environment {environment!r} has the keys {[path[0] if len(path) == 1 else path for path in paths]} in its"
            " observation space; expected keys that are different as texts (those within each other joined by /), and"
            " none that is empty"
        )
    return spaces.Dict({name: _agent_leaf(leaf, environment, of_part(path)) for name, (path, leaf) in parts.items()})


def agent_action_space(space: Space, environment: str) -> Space:
    """The space of the actions that agents take: Box is float32 (also of integers), what is discrete begins at 0, and
    what consists of several choices or bits has one axis.

    Raises InvalidEnvironment naming the `environment`, its space and what is supported.
    """
    match space:
        case spaces.Discrete():
            return spaces.Discrete(int(space.n))
        case spaces.MultiDiscrete():
            return spaces.MultiDiscrete(space.nvec.flatten())
        case spaces.MultiBinary():
            return spaces.MultiBinary(math.prod(space.shape))
        case spaces.Box() if np.issubdtype(space.dtype, np.number):
            return _float_box(space)
        case _:
            kind, cure = type(space).__name__, _WRAP
            if isinstance(space, spaces.Box):
                kind, cure = f"Box of {space.dtype}", "make it a MultiBinary"
            elif isinstance(space, (spaces.Dict, spaces.Tuple)):
                cure = _JOIN
            raise _not_supported("action", space, environment, "", kind, _SUPPORTED_ACTIONS, cure)


def agent_parts(space: Space) -> dict[str, tuple[Path, Space]]:
    """The path in the environment's observation and the space of each array of an observation, by the agent's key.

    Agents' keys are texts, as names of experience fields must be: str() of the environment's, joined by "/". Where the
    space is neither a Dict nor a Tuple, there is one array with the key "".
    """
    return {"/".join(map(str, path)): (path, leaf) for path, leaf in _leaves(space)}


def inner_spaces(space: Space) -> Iterable[tuple[Any, Space]]:
    """The spaces in a Dict or Tuple, by key or place; nothing in others."""
    if isinstance(space, spaces.Dict):
        return space.spaces.items()
    return enumerate(space.spaces) if isinstance(space, spaces.Tuple) else ()


def blank_of(space: Space) -> Any:
    """An observation that is in a supported space of an environment's own, and says nothing: as near 0 as it may be."""
    if isinstance(space, spaces.Dict):
        return {key: blank_of(inner) for key, inner in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(map(blank_of, space))
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    start = start_of(space)
    return np.zeros(space.shape or (), space.dtype) + (0 if start is None else np.asarray(start, space.dtype))


def without_parts(space: Space, keys: Iterable[str]) -> Space:
    """The agent's Dict `space` without the parts `keys`; the space itself without any."""
    left_out = set(keys)
    if not left_out or not isinstance(space, spaces.Dict):
        return space
    return spaces.Dict({key: leaf for key, leaf in space.items() if key not in left_out})


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

    With `squash`, any number is first mapped into the bounds of a Box, by a tanh where there are two, by a softplus
    where there is one. They have separate memory: environments may change the actions that they are given, or keep
    them.
    """

    def __init__(self, space: Space, *, squash: bool = False) -> None:
        self._offset = start_of(space)
        self._dtype = np.dtype(space.dtype)
        self._shape = tuple(space.shape or ())
        self._low: Array | None = None
        self._high: Array | None = None
        if isinstance(space, spaces.Box):
            self._low = space.low if np.isfinite(space.low).any() else None
            self._high = space.high if np.isfinite(space.high).any() else None
        bounded = self._low is not None or self._high is not None
        self._squash = _Squashing(space) if squash and bounded and isinstance(space, spaces.Box) else None

    def __call__(self, actions: Array) -> Array:
        if actions.shape[1:] != self._shape:
            actions = actions.reshape(len(actions), *self._shape)
        if self._squash is not None:
            actions = self._squash(actions)
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


class _Squashing:
    """Any numbers as numbers within the bounds of a Box, in their order; float64."""

    def __init__(self, space: spaces.Box) -> None:
        below, above = np.isfinite(space.low), np.isfinite(space.high)
        self._low, self._high = (
            np.where(finite, bound, 0).astype(np.float64) for finite, bound in ((below, space.low), (above, space.high))
        )
        self._both, self._below, self._above = below & above, below & ~above, above & ~below

    def __call__(self, numbers: Array) -> Array:
        numbers = numbers.astype(np.float64)
        share = 0.5 * np.tanh(numbers) + 0.5
        # Not low + share * (high - low), which can be infinite.
        result = np.where(self._both, self._low * (1.0 - share) + self._high * share, numbers)
        result = np.where(self._below, self._low + np.logaddexp(0.0, numbers), result)
        return np.where(self._above, self._high - np.logaddexp(0.0, -numbers), result)


def _leaves(space: Space, path: Path = ()) -> Iterator[tuple[Path, Space]]:
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        yield path, space
    for key, inner in inner_spaces(space):
        yield from _leaves(inner, (*path, key))


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
            kind = type(space).__name__
            cure = next((cure for known, cure in _OBSERVED_INSTEAD.items() if isinstance(space, known)), _WRAP)
            raise _not_supported("observation", space, environment, where, kind, _SUPPORTED_OBSERVATIONS, cure)


def _not_supported(
    role: str, space: Space, environment: str, where: str, kind: str, supported: str, cure: str
) -> InvalidEnvironment:
    return InvalidEnvironment(
        f"environment {environment!r} has the {role} space {space}{where}, and {kind} is not supported; supported are"
        f" {supported}: {cure}"
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
