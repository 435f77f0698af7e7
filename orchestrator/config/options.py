"""What options for environments may hold in a run that records its settings: what its config.toml gives back as it was.

A run, its repetition from the file and its resumption must give the environment the very same value. So what TOML has
no word for is refused rather than turned into something like it: a tuple would come back as a list.
"""

from __future__ import annotations

import datetime
import enum
import math
import tomllib
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import tomli_w

from orchestrator.config.error import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXPECTED = "true or false, a number, text, a date or time, or a list or table (with text keys) of those"
_SCALARS = (bool, int, float, str, datetime.datetime, datetime.date, datetime.time)
DEPTH = 50
"""Levels of lists and tables in each other: what contains itself has no end."""


def plain_option(value: object, path: str, problems: list[Problem], depth: int = 0) -> object:
    """A copy of `value` that TOML can express, with nothing changed; what it cannot express goes to `problems`."""
    kind = type(value)
    if kind in _SCALARS and _comes_back(value):
        return value
    if depth < DEPTH:
        if kind is list:
            items = cast("list[object]", value)
            return [plain_option(item, f"{path}[{index}]", problems, depth + 1) for index, item in enumerate(items)]
        # The outermost table may be a mapping of any kind: it is taken apart into keyword arguments.
        if kind is dict or (depth == 0 and isinstance(value, Mapping)):
            table = cast("Mapping[object, object]", value)
            wrong = [key for key in table if type(key) is not str or not _comes_back(key)]
            if not wrong:
                return {
                    str(key): plain_option(item, f"{path}.{key}", problems, depth + 1) for key, item in table.items()
                }
            cure = f"the keys of a table are text: write {', '.join(repr(str(key)) for key in wrong)}"
            problems.append(Problem(field=path, value=value, expected=_EXPECTED, cure=cure))
            return ""
    problems.append(Problem(field=path, value=value, expected=_EXPECTED, cure=_cure(value)))
    return ""


def same_option(one: object, other: object) -> bool:
    """Whether two values are the same to the environment that gets them: also in their types, and NaN is NaN."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        first, second = cast("Mapping[str, object]", one), cast("Mapping[str, object]", other)
        return first.keys() == second.keys() and all(same_option(item, second[key]) for key, item in first.items())
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        items, others = cast("Sequence[object]", one), cast("Sequence[object]", other)
        return len(items) == len(others) and all(map(same_option, items, others))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def _comes_back(value: object) -> bool:
    """Whether a single value is read from a file exactly as it was written; not so half of a character, numbers of
    thousands of digits, or a time zone with rules."""
    try:
        again = tomllib.loads(tomli_w.dumps({"value": value}).encode().decode())["value"]
    except (ValueError, TypeError):
        return False
    return repr(again) == repr(value)


def _cure(value: Any) -> str:
    otherwise = "name a function package.module:function as the environment, which makes it with that value"
    match value:
        case None:
            return "leave it out"
        case enum.Enum():
            return f"give {value.value!r}, or {otherwise}"
        case PurePath():
            return f"give the text {str(value)!r}"
        case tuple() | set() | frozenset():
            return f"give the list {list(cast('tuple[object, ...]', value))!r}, or {otherwise}"
        case Mapping():
            return f"give a plain dict, or {otherwise}"
        case _ if hasattr(value, "tolist"):  # numpy's numbers and arrays, tensors
            return f"give its value.tolist(), or {otherwise}"
        case _:
            return otherwise
