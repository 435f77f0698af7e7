"""Reads the fields of a configuration by name: their dotted paths, annotations and values."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from orchestrator.config.settings import TrainerConfig

_NAMES: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    types.NoneType: "nothing",
}
_PLURALS: dict[object, str] = {int: "whole numbers", float: "numbers", str: "texts"}


@functools.cache
def fields_of(section: type) -> dict[str, Any]:
    """The fields of one configuration dataclass, in order, with their resolved annotations."""
    hints = get_type_hints(section)
    return {entry.name: hints[entry.name] for entry in fields(section)}


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, Any, object]]:
    """Path (`learning.clip`), annotation and value of every field that is not itself a section.

    A section that holds something else than its dataclass comes out as one leaf.
    """
    for name, hint in fields_of(type(config)).items():
        value = cast(object, getattr(config, name))
        if is_dataclass(hint) and isinstance(value, cast(type, hint)):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, hint, value


def table_type(hint: Any) -> type | None:
    """The dataclass of which a field holds a tuple, `[[tables]]` in a file; None for a field of another kind."""
    item = get_args(hint)[0] if get_origin(hint) is tuple else None
    return item if is_dataclass(item) and isinstance(item, type) else None


def table_leaves(config: object) -> Iterator[tuple[str, Any, object]]:
    """As `leaves`, of the fields of every table in a tuple of them: `evaluation.tasks[0].seed`."""
    for path, hint, value in leaves(config):
        if table_type(hint) is not None and fits(hint, value):
            for index, table in enumerate(cast("tuple[object, ...]", value)):
                yield from leaves(table, f"{path}[{index}].")


def value_at(config: object, path: str) -> Any:
    """The value of the field with a dotted path."""
    return functools.reduce(getattr, path.split("."), config)


def default_of(path: str) -> str:
    """What to write for the field with a dotted path if in doubt: `the default is ...`."""
    list_path, bracket, rest = path.partition("[")
    if bracket:  # of one table in a list of them
        section, _, name = list_path.rpartition(".")
        table = table_type(fields_of(type(value_at(TrainerConfig(), section)))[name])
        assert table is not None
        field = rest.partition("].")[2]
        default = value_at(table(), field) if field else table()
    else:
        default = value_at(TrainerConfig(), path)
    if is_dataclass(default):
        header = f"[[{list_path}]]" if bracket else f"[{path}]"
        return f"write {header} and its settings below it"
    if default is None:
        return "leave it out for the default"
    if isinstance(default, bool):
        return f"the default is {str(default).lower()}"
    return f"the default is {list(cast(tuple[object, ...], default)) if isinstance(default, tuple) else default}"


def fits(hint: Any, value: object) -> bool:
    """Whether a value is what the annotation of a configuration field says."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, types.UnionType):
        return any(fits(argument, value) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = cast(tuple[object, ...], value)
        expected = arguments[:1] * len(items) if arguments[-1] is Ellipsis else arguments
        return len(items) == len(expected) and all(map(fits, expected, items))
    if origin is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in cast(Mapping[object, object], value))
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """What an annotation admits, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is tuple:
        count = "any number of" if arguments[-1] is Ellipsis else str(len(arguments))
        if table_type(hint) is not None:
            return f"a list of {count} tables of settings"
        return f"a list of {count} {_PLURALS[arguments[0]]}"
    if origin is Mapping or is_dataclass(hint):
        return "a table of settings"
    return _NAMES[hint]
