"""What environments return besides observations, taken apart and checked: tuples, rewards, flags, infos, and values
that must become arrays of a given shape and dtype without becoming other numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from orchestrator.environments.spaces import Array

Warn = Callable[[str, str], None]
"""Takes what a warning is about, of which there is one, and its text, which continues the environment's name."""

_NUMBERS = "biuf"
_FLOAT32 = np.dtype(np.float32)
_STEP = "observation, reward, terminated, truncated, info"


class WrongReturn(ValueError):
    """Says what an environment returned, what is expected instead, and what to do; continues "returned"."""


class WrongEntry(WrongReturn):
    """Something wrong at `place` in an array of all copies."""

    def __init__(self, text: str, place: tuple[int, ...]) -> None:
        self.place = place
        super().__init__(text)


class OutOfRange(WrongEntry):
    """A finite number that becomes infinite in fewer digits."""

    def __init__(self, about: str, value: object, dtype: np.dtype[Any], place: tuple[int, ...]) -> None:
        super().__init__(
            f"as {about} the number {value!s}, which is finite, but beyond what {dtype} can hold"
            f" ({np.finfo(dtype).max:.3g}), which agents learn from; scale it, or clip it",
            place,
        )


def step_parts(result: object) -> tuple[Any, ...]:
    """The five parts of what `step` returned. Raises WrongReturn."""
    if type(result) is tuple and len(cast("tuple[Any, ...]", result)) == 5:
        return cast("tuple[Any, ...]", result)
    if not isinstance(result, (tuple, list)):
        raise WrongReturn(f"a {type(result).__name__}, expected a tuple: {_STEP}")
    parts = tuple(cast("tuple[Any, ...]", result))
    if len(parts) == 5:
        return parts
    if len(parts) == 4:
        raise WrongReturn(
            f"4 values, as old versions of Gym did, expected 5: {_STEP}; return terminated and truncated in the place"
            " of done, truncated being True where only a time limit ended the episode"
        )
    raise WrongReturn(f"{len(parts)} values, expected 5: {_STEP}")


def reset_parts(result: object) -> tuple[Any, Mapping[str, Any]]:
    """The observation and the info that `reset` returned. Raises WrongReturn."""
    if isinstance(result, (tuple, list)):
        parts = tuple(cast("tuple[Any, ...]", result))
        if len(parts) == 2 and isinstance(parts[1], Mapping):
            return cast("tuple[Any, Mapping[str, Any]]", parts)
        given = f"{len(parts)} values ({', '.join(type(part).__name__ for part in parts[:5])})"
    else:
        given = f"a {type(result).__name__}"
    raise WrongReturn(
        f"{given}, expected 2: observation, info; return the info too, an empty dict if there is nothing to say"
        " (old versions of Gym returned the observation alone)"
    )


def check_info(info: object) -> None:
    """Raises WrongReturn for what is no mapping."""
    if type(info) is not dict and not isinstance(info, Mapping):
        raise WrongReturn(
            f"{described_value(info)} as the info, expected a dict; return an empty one if there is nothing to say"
        )


def reward_of(value: object, warn: Warn) -> float:
    """One copy's reward. An array of one number is taken for it, with a warning. Raises WrongReturn."""
    if isinstance(value, (int, np.floating, np.integer)):
        try:
            number = float(value)
        except OverflowError:
            bits = int(value).bit_length()
            raise WrongReturn(
                f"an integer of {bits} bits as the reward, expected a number that a float can say"
            ) from None
        if math.isinf(number) and np.isfinite(value):
            raise OutOfRange("the reward", value, _FLOAT32, ())
        return number
    array = array_of(value)
    if array is None or array.dtype.kind not in _NUMBERS or array.size != 1:
        raise WrongReturn(f"{described_value(value)} as the reward, expected one number; return float(reward)")
    if array.ndim:
        warn(
            "reward", f"returns rewards of shape {list(array.shape)}, which are taken for numbers; return float(reward)"
        )
    return float(array.item())


def flag_of(name: str, value: object, warn: Warn) -> bool:
    """One copy's `terminated` or `truncated`. What is 0 or 1 is taken for it, with a warning. Raises WrongReturn."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    array = array_of(value)
    if array is None or array.dtype.kind not in _NUMBERS or array.size != 1 or array.item() not in (0, 1):
        raise WrongReturn(f"{described_value(value)} as {name}, expected True or False; return bool({name})")
    warn(name, f"returns {described_value(value)} as {name}, which is taken for True or False; return bool({name})")
    return bool(array.item())


def rewards_of(value: object, count: int, warn: Warn) -> Array:
    """The rewards `[count]` of all copies, float32. Raises WrongReturn."""
    usual = type(value) is np.ndarray and value.shape == (count,) and value.dtype.kind == "f"
    array = cast("Array", value) if usual else _column("rewards", value, count, warn)
    return narrowed(array, _FLOAT32, "the reward")


def flags_of(name: str, value: object, count: int, warn: Warn) -> Array:
    """`terminated` or `truncated` `[count]` of all copies. Raises WrongReturn."""
    if type(value) is np.ndarray and value.shape == (count,) and value.dtype.kind == "b":
        return value
    array = _column(name, value, count, warn)
    if array.dtype != np.bool_:
        if not np.isin(array, (0, 1)).all():
            raise WrongReturn(f"{array.tolist()} as {name}, expected True or False for each copy")
        warn(name, f"returns {name} of {array.dtype}, which are taken for True or False; return bool")
    return array.astype(np.bool_, copy=False)


def exact(value: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """`value` as an array `[*shape]` of `dtype`, or of floats with more digits where `dtype` is of floats: see
    `narrow`.

    Raises WrongReturn saying what it is instead, where it can't be converted without becoming other numbers.
    """
    array = array_of(value)
    if array is None or array.dtype.kind not in _NUMBERS:
        raise WrongReturn(f"{described_value(value)}, expected {dtype} of shape {list(shape)}")
    if array.shape != shape:
        raise WrongReturn(f"an array of shape {list(array.shape)}, expected {list(shape)}")
    if array.dtype == dtype or array.dtype.kind == dtype.kind == "f":
        return array
    if dtype.kind == "f":
        return array.astype(dtype)
    if array.dtype.kind == "f":
        raise WrongReturn(f"{array.dtype} where {dtype} is expected, which would cut off fractions")
    if not np.can_cast(array.dtype, dtype):
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        outside = (array < low) | (array > high)
        if outside.any():
            raise WrongReturn(f"the number {array[outside][0]} where {dtype} is expected: {low} to {high}")
    return array.astype(dtype)


def narrow(given: Array, into: Array, about: str) -> None:
    """Round numbers to the fewer digits of the array `into`. Raises OutOfRange for finite ones that become infinite.

    Slower than assigning a row (several microseconds): to be called for all rows at once.
    """
    try:
        # Whatever the environment's code has set for itself.
        with np.errstate(all="ignore", over="raise"):
            into[...] = given
    except FloatingPointError:
        with np.errstate(all="ignore"):
            wrong = np.isfinite(given) & ~np.isfinite(given.astype(into.dtype))
        place = tuple(map(int, np.argwhere(wrong)[0]))
        raise OutOfRange(about, given[place], into.dtype, place) from None


def narrowed(array: Array, dtype: np.dtype[Any], about: str) -> Array:
    """The array in `dtype`: itself, or its copy as `narrow` makes it. Raises OutOfRange."""
    if array.dtype == dtype:
        return array
    result = np.empty(array.shape, dtype)
    narrow(array, result, about)
    return result


def _column(name: str, value: object, count: int, warn: Warn) -> Array:
    array = array_of(value)
    if array is None or array.dtype.kind not in _NUMBERS:
        raise WrongReturn(f"{described_value(value)} as {name}, expected an array of shape [{count}]")
    if array.shape == (count, 1):
        warn(
            name, f"returns {name} of shape [{count}, 1], which are taken for [{count}]; return them without that axis"
        )
        return array[:, 0]
    if array.shape != (count,):
        raise WrongReturn(f"{name} of shape {list(array.shape)}, expected [{count}], one for each copy")
    return array


def array_of(value: object) -> Array | None:
    """None for what is no array, or has no numbers in some of its places."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        return None  # what is under the mask is no value
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # rows of several lengths, tensors with gradients or elsewhere
        return None


def described_value(value: object) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value[:20]!r}"
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        return f"an array of shape {list(value.shape)} with masked numbers (fill them, as by filled(0))"
    if isinstance(value, (np.ndarray, np.generic)):
        return f"{value.dtype} of shape {list(value.shape)}"
    if isinstance(value, (list, tuple)) and value:
        return f"a {type(value).__name__} of {type(cast('list[object]', value)[0]).__name__}"
    return f"a {type(value).__name__}"
