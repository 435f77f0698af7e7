"""The state of environments as plain data: numbers, strings, None, numpy arrays, and lists and dicts of those.

An environment is its attributes, wrapper by wrapper. What is not data in a known form (a simulator's handle, an
object of some class) makes the whole environment one that cannot be captured: a half of a state would be worse
than none. No code is stored, so that reading a checkpoint runs none.
"""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

_KIND = "kind"
_SCALARS = (bool, int, float, str, type(None))
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"list": list, "tuple": tuple, "deque": deque}
# Decided when the environment was made; a restored environment has its own.
_CONFIGURATION = (
    gymnasium.Space,
    EnvSpec,
    Enum,
    type,
    partial,
    np.dtype,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
)


class _NotPlainError(Exception):
    pass


def capture(environment: object) -> dict[str, object] | None:
    """The state of a gymnasium environment or vector environment, wrapped or not; None where it is not plain data.

    An environment that draws from global random generators goes on with other numbers.
    """
    try:
        return _encode_environment(environment, set())
    except _NotPlainError:
        return None


def restore(environment: object, state: Mapping[str, object]) -> None:
    """Give `environment`, made like the captured one, the captured state. Raises ValueError if it is another."""
    name = type(environment).__name__
    if state.get(_KIND) != "environment" or state.get("class") != name:
        raise ValueError(f"the saved state is of the environment class {state.get('class')!r}, this is a {name!r}")
    for key, value in cast("Mapping[str, object]", state["items"]).items():
        # Past setattr: wrappers and frozen dataclasses define their own.
        vars(environment)[key] = _decode(vars(environment).get(key), value)


def _encode_environment(environment: object, seen: set[int]) -> dict[str, object]:
    if id(environment) in seen or not hasattr(environment, "__dict__"):
        raise _NotPlainError  # a cycle, or attributes out of sight
    seen.add(id(environment))
    items = {key: _encode(value, seen) for key, value in vars(environment).items()}
    return {_KIND: "environment", "class": type(environment).__name__, "items": items}


def _encode(value: object, seen: set[int]) -> object:
    if type(value) in _SCALARS:
        return value
    match value:
        case np.ndarray() if not value.dtype.hasobject:
            return value.copy()
        case np.generic() if not value.dtype.hasobject:
            return {_KIND: "number", "value": np.asarray(value)}
        case list() | tuple() | deque() if type(value) in (list, tuple, deque):
            return {_KIND: type(value).__name__, "items": [_encode(item, seen) for item in cast(Any, value)]}
        case dict() if type(value) is dict and all(type(key) is str for key in value):
            items = {key: _encode(item, seen) for key, item in cast("dict[str, object]", value).items()}
            return {_KIND: "dict", "items": items}
        case np.random.Generator():
            return {_KIND: "generator", "state": _encode(value.bit_generator.state, seen)}
        case random.Random():
            return {_KIND: "random", "state": _encode(value.getstate(), seen)}
        case gymnasium.Env() | gymnasium.vector.VectorEnv() | gymnasium.vector.VectorWrapper():
            return _encode_environment(value, seen)
        case _ if isinstance(value, _CONFIGURATION):
            return {_KIND: "configuration"}
        case _:
            raise _NotPlainError


def _decode(current: Any, saved: Any) -> Any:
    if isinstance(saved, np.ndarray):
        if isinstance(current, np.ndarray) and _alike(current, saved):
            current[...] = saved  # other attributes may be views of it
            return current
        return saved.copy()
    if not isinstance(saved, Mapping):
        return saved
    state = cast("Mapping[str, Any]", saved)
    match state[_KIND]:
        case "number":
            return state["value"][()]
        case "dict":
            now = current if isinstance(current, dict) else {}
            return {key: _decode(now.get(key), item) for key, item in state["items"].items()}
        case "generator":
            return _generator(_decode(None, state["state"]))
        case "random":
            generator = random.Random()
            generator.setstate(_decode(None, state["state"]))
            return generator
        case "environment":
            restore(current, state)
            return current
        case "configuration":
            return current
        case kind:
            items = state["items"]
            now = list(current) if isinstance(current, (list, tuple, deque)) else []
            now += [None] * (len(items) - len(now))
            decoded = [_decode(old, item) for old, item in zip(now, items, strict=False)]
            return deque(decoded, current.maxlen) if isinstance(current, deque) else _SEQUENCES[kind](decoded)


def _alike(current: np.ndarray[Any, Any], saved: np.ndarray[Any, Any]) -> bool:
    return current.shape == saved.shape and current.dtype == saved.dtype and current.flags.writeable


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
    bit_generator = getattr(np.random, state["bit_generator"])()
    bit_generator.state = state
    return np.random.Generator(bit_generator)
