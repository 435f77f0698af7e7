"""An environment's own spaces as JSON, and back: what a checkpoint records, so that its policy can act without the
environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from orchestrator.environments.spaces import Array, Space
from state.frozen_mapping import FrozenMapping

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class NotRecordable(ValueError):
    """A space that JSON cannot say; the message says why."""


POLICIES = "policies"
"""Where the spaces of the agents of each policy are, by its name."""


def recorded_spaces(
    observation: Space, action: Space, of_policies: Mapping[str, tuple[Space, Space]] = FrozenMapping({})
) -> dict[str, Any]:
    """Both spaces as JSON, and those of the agents of each policy where types of agents have their own; instead of what
    it cannot say, "problem" says why."""
    try:
        recorded = {"observation": space_to_json(observation), "action": space_to_json(action)}
        if not of_policies:
            return recorded
        return recorded | {POLICIES: {name: recorded_spaces(*own) for name, own in of_policies.items()}}
    except NotRecordable as error:
        return {"problem": str(error)}


def space_to_json(space: Space) -> dict[str, Any]:
    """A supported space as JSON; `space_from_json` makes an equal one. Raises NotRecordable."""
    match space:
        case spaces.Box():
            dtype = np.dtype(space.dtype)
            bounds = {"low": _numbers(space.low), "high": _numbers(space.high)}
            return {"type": "Box", "shape": list(space.shape), "dtype": dtype.name, **bounds}
        case spaces.Discrete():
            dtype = np.dtype(space.dtype)
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": dtype.name}
        case spaces.MultiDiscrete():
            dtype = np.dtype(space.dtype)
            numbers = {"nvec": space.nvec.tolist(), "start": np.asarray(space.start).tolist()}
            return {"type": "MultiDiscrete", "dtype": dtype.name, **numbers}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "shape": list(space.shape)}
        case spaces.Dict():
            return {"type": "Dict", "spaces": [[_key(key), space_to_json(part)] for key, part in space.items()]}
        case spaces.Tuple():
            return {"type": "Tuple", "spaces": [space_to_json(part) for part in space.spaces]}
        case _:
            raise NotRecordable(f"{type(space).__name__} is none of the spaces that are supported")


def space_from_json(data: Mapping[str, Any]) -> Space:
    """The space that `space_to_json` was given. Raises KeyError, TypeError or ValueError for other data."""
    match data["type"]:
        case "Box":
            shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
            low, high = (_array(data[bound], shape, dtype) for bound in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        case "Discrete":
            space = spaces.Discrete(data["n"], start=data["start"])
            dtype = np.dtype(data["dtype"])
            # Not every release of gymnasium that is supported knows other dtypes.
            return space if space.dtype == dtype else spaces.Discrete(data["n"], start=data["start"], dtype=dtype.type)
        case "MultiDiscrete":
            dtype = np.dtype(data["dtype"])
            nvec, start = (np.array(data[name], dtype) for name in ("nvec", "start"))
            return spaces.MultiDiscrete(nvec, dtype.type, start=start)
        case "MultiBinary":
            shape = data["shape"]
            return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
        case "Dict":
            return spaces.Dict([(_key_from_json(key), space_from_json(part)) for key, part in data["spaces"]])
        case "Tuple":
            return spaces.Tuple([space_from_json(part) for part in data["spaces"]])
        case kind:
            raise ValueError(f"there is no kind of space called {kind!r}")


def _numbers(bounds: Array) -> Any:
    """One number where all are the same: images have tens of thousands."""
    if bounds.size and np.all(bounds == bounds.flat[0]):
        return _number(bounds.flat[0].item())
    return [_number(number) for number in bounds.flatten().tolist()]


def _number(number: Any) -> Any:
    return str(float(number)) if isinstance(number, float) and not math.isfinite(number) else _plain(number)


def _plain(number: Any) -> bool | int | float:
    return number if isinstance(number, (bool, int)) else float(number)  # a long double is no Python number


def _array(data: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if not isinstance(data, list):
        return np.full(shape, _NOT_FINITE.get(data, data), dtype)
    numbers = [_NOT_FINITE.get(number, number) for number in cast("list[Any]", data)]
    return np.array(numbers, dtype).reshape(shape)


def _key(key: object) -> Any:
    """Keys of Dicts are plain data, or Tuples of it, which become lists."""
    if isinstance(key, np.generic):
        key = key.item()
    if isinstance(key, tuple):
        return [_key(part) for part in cast("tuple[object, ...]", key)]
    if isinstance(key, str):  # members of enumerations, too: they are equal to it
        return str.__str__(key)
    if isinstance(key, int):
        return int(key)
    if key is None or type(key) is float:
        return key
    raise NotRecordable(f"the key {key!r} of a Dict is neither text nor a number: give the parts such keys")


def _key_from_json(key: Any) -> Any:
    return tuple(map(_key_from_json, cast("list[Any]", key))) if isinstance(key, list) else key
