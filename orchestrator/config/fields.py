"""The fields of settings: what their annotations say, their values, and what is wrong with a value.

A section of settings is any class with annotated fields that have defaults: the configuration's dataclasses, and hooks.
"""

from __future__ import annotations

import difflib
import functools
import numbers
import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from orchestrator.config.annotations import Admits, Formerly
from orchestrator.config.error import Problem, shown

_NAMES: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    types.NoneType: "nothing",
}
_PLURALS: dict[object, str] = {
    int: "whole numbers",
    float: "numbers",
    str: "texts",
    type[Exception]: "exception classes",
}


class Setting(NamedTuple):
    """One field of a section."""

    hint: Any
    """Its annotation, with all that stands there."""
    default: object


@functools.cache
def settings_of(section: type) -> Mapping[str, Setting]:
    """The settings of a section by name, in order."""
    defaults = section()
    hints = get_type_hints(section, include_extras=True)
    return {name: Setting(hint, getattr(defaults, name)) for name, hint in hints.items() if hasattr(defaults, name)}


def bare(hint: Any) -> Any:
    """An annotation without its notes."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def notes(hint: Any) -> tuple[Any, ...]:
    """What stands at a field, or at an alternative of its type."""
    alternatives = get_args(bare(hint)) if _is_union(hint) else ()
    return _own_notes(hint) + tuple(note for one in alternatives for note in notes(one))


def _own_notes(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


def _is_union(hint: Any) -> bool:
    return get_origin(bare(hint)) in (Union, types.UnionType)


def former_name(hint: Any) -> str | None:
    """What a setting was called in earlier releases; None for one that has kept its name."""
    return next((note.name for note in notes(hint) if isinstance(note, Formerly)), None)


def section_type(hint: Any) -> type | None:
    """The dataclass that a field holds, `[table]` in a file; None for a field of another kind."""
    kind = bare(hint)
    return kind if is_dataclass(kind) and isinstance(kind, type) else None


def table_type(hint: Any) -> type | None:
    """The dataclass of which a field holds a tuple, `[[tables]]` in a file; None for a field of another kind."""
    return section_type(get_args(bare(hint))[0]) if get_origin(bare(hint)) is tuple else None


def leaves(config: object, prefix: str = "", inherited: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any, object]]:
    """Path (`learning.clip`), annotation and value of every field that is not itself a section.

    What stands at a section stands at each of its fields. A section that holds something else than its dataclass
    comes out as one leaf.
    """
    for name, setting in settings_of(type(config)).items():
        value = cast(object, getattr(config, name))
        kind = section_type(setting.hint)
        if kind is not None and isinstance(value, kind):
            yield from leaves(value, f"{prefix}{name}.", inherited + notes(setting.hint))
        else:
            yield prefix + name, Annotated[setting.hint, *inherited] if inherited else setting.hint, value


def problems_of(config: object, kind: type, prefix: str = "") -> Iterator[Problem]:
    """Everything that is wrong with the settings of a section, or of all sections, each by itself."""
    for name, setting in settings_of(kind).items():
        yield from _value_problems(getattr(config, name), setting, prefix + name)


def _value_problems(value: object, setting: Setting, path: str) -> Iterator[Problem]:
    if not fits(setting.hint, value):
        yield wrong_type(value, setting, path, in_code=True)
        return
    kind, item = section_type(setting.hint), table_type(setting.hint)
    if kind is not None:
        yield from problems_of(value, kind, path + ".")
    elif item is not None:
        for index, table in enumerate(cast("tuple[object, ...]", value)):
            yield from problems_of(table, item, f"{path}[{index}].")
    for rule in _rules(setting.hint, value):
        if not rule.holds(value):
            cure = rule.cure or default_of(setting, path)
            formerly = former_name(setting.hint)
            yield Problem(field=path, value=value, expected=rule.expected, cure=cure, formerly=formerly)


def _rules(hint: Any, value: object) -> Iterator[Admits]:
    """Those of the annotation, and of the alternative in it that the value is."""
    yield from (note for note in _own_notes(hint) if isinstance(note, Admits))
    if _is_union(hint):
        yield from _rules(next(one for one in get_args(bare(hint)) if fits(one, value)), value)


def wrong_type(value: object, setting: Setting, path: str, *, in_code: bool = False) -> Problem:
    """The problem that a value is not what the field's annotation says."""
    cure = default_of(setting, path, in_code=in_code)
    if isinstance(value, str) and fits(setting.hint, (value,)):
        cure = f"write {(value,) if in_code else [value]}"
    elif isinstance(value, str) and (near := _near_choices(setting.hint, value)):
        cure = f"did you mean {' or '.join(near)}?"
    elif isinstance(value, Mapping) and (section := section_type(setting.hint)) is not None and in_code:
        settings = cast("Mapping[object, object]", value).items()
        cure = f"write {section.__name__}({', '.join(f'{name}={shown(one)}' for name, one in settings) or '...'})"
    elif isinstance(value, Mapping) and table_type(setting.hint) is not None and not in_code:
        cure = f"write [[{path}]] for each, and its settings below it"
    elif isinstance(value, float) and value.is_integer() and fits(setting.hint, int(value)):
        cure = f"write {int(value)}"
    expected = describe(setting.hint, in_code=in_code)
    return Problem(field=path, value=value, expected=expected, cure=cure, formerly=former_name(setting.hint))


def _near_choices(hint: Any, value: str) -> list[str]:
    """Those of the words that an annotation admits that a wrong one may mean."""
    alternatives = get_args(bare(hint)) if _is_union(hint) else (hint,)
    words = [word for one in map(bare, alternatives) if get_origin(one) is Literal for word in get_args(one)]
    return difflib.get_close_matches(value.lower(), words, n=2)


def default_of(setting: Setting, path: str, *, in_code: bool = False) -> str:
    """What to write for a field if in doubt: `the default is ...`."""
    default = setting.default
    section = section_type(setting.hint)
    if section is not None:
        return f"write {section.__name__}(...)" if in_code else f"write [{path}] and its settings below it"
    if default is None:
        return "leave it out for the default"
    if isinstance(default, bool):
        return f"the default is {str(default).lower()}"
    if isinstance(default, tuple) and not in_code:
        default = list(cast(tuple[object, ...], default))
    return f"the default is {default}"


def plain(value: object) -> object:
    """Numbers of another type, such as numpy's, as Python's own, also in a tuple; anything else as it is."""
    if type(value) is tuple:
        return tuple(map(plain, cast("tuple[object, ...]", value)))
    if type(value) in (bool, int, float) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def fits(hint: Any, value: object) -> bool:
    """Whether a value is of the type that the annotation of a field says."""
    hint = bare(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if _is_union(hint):
        return any(fits(argument, value) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = cast(tuple[object, ...], value)
        expected = arguments[:1] * len(items) if arguments[-1] is Ellipsis else arguments
        return len(items) == len(expected) and all(map(fits, expected, items))
    if origin is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in cast(Mapping[object, object], value))
    if origin is type:
        return isinstance(value, type) and issubclass(value, arguments[0])
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any, *, in_code: bool = False) -> str:
    """The type that an annotation says, in words: those of a file, or those of Python."""
    hint = bare(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if _is_union(hint):
        return " or ".join(describe(argument, in_code=in_code) for argument in arguments)
    if origin is tuple:
        count = f"{len(arguments)} " if arguments[-1] is not Ellipsis else "" if in_code else "any number of "
        item = table_type(hint)
        plural = (
            _PLURALS[arguments[0]] if item is None else f"{item.__name__}(...)" if in_code else "tables of settings"
        )
        return f"a {'tuple' if in_code else 'list'} of {count}{plural}"
    if is_dataclass(hint) and in_code:
        return f"{cast(type, hint).__name__}(...)"
    return "a table of settings" if origin is Mapping or is_dataclass(hint) else _NAMES[hint]
