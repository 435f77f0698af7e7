"""Configurations as TOML files: reading one, with all of its errors at once, and writing one that repeats a run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

import tomli_w

from orchestrator.config.error import ConfigurationError, Problem, nearest
from orchestrator.config.fields import (
    fits,
    problems_of,
    section_type,
    settings_of,
    table_type,
    wrong_type,
)
from orchestrator.config.former_names import former_names, given_twice
from orchestrator.config.options import plain_option
from orchestrator.config.settings import TrainerConfig
from orchestrator.config.similar import places_named, similar_settings
from orchestrator.config.user_path import user_path
from orchestrator.replacing import replacing

_HEADER = "# The settings of a run: `orchestrator train --config <this file>` repeats it, in a new folder.\n\n"


def read_config(path: Path) -> TrainerConfig:
    """Reads a configuration; what the file does not say keeps its default.

    Raises `ConfigurationError` with everything that is wrong in the file: unknown settings (with the nearest
    names) and values of another type. Whether the values can work together is `check_config`'s subject.
    """
    path = user_path(path)
    return parse_config(_content(path), path)


def read_with_problems(path: Path) -> tuple[TrainerConfig, list[Problem]]:
    """What a file says, with the defaults in place of settings that are wrong, and what is wrong with these.

    Raises `ConfigurationError` for a file that cannot be read at all.
    """
    path = user_path(path)
    return _read_table(_parse(_content(path), path))


def parse_config(text: bytes, path: Path) -> TrainerConfig:
    """As `read_config`, of what was read from `path`."""
    return from_table(_parse(text, path), path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        inside = path / "config.toml"
        cure = f"give {inside}" if inside.is_file() else "give the path of an existing TOML file"
        raise _unreadable(path, f"a file that can be read ({error.strerror})", cure) from error


def _parse(text: bytes, path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(text.decode())
    except ValueError as error:  # of the syntax, or of the encoding
        raise _unreadable(path, "a TOML file", f"correct it: {error}") from error


def write_config(config: TrainerConfig, path: Path) -> None:
    """Writes every setting into a new file; reading it gives an equal configuration.

    Never overwrites: of two runs that are started in one folder, the second fails here. Raises
    `ConfigurationError` if `collection.environment_options` holds what TOML cannot express, `FileExistsError`
    if there is such a file, and `OSError` if it cannot be written.
    """
    text = config_text(config)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def replace_config(config: TrainerConfig, path: Path) -> None:
    """Writes every setting in place of what is there, at once: for a run that resumes with some of them changed."""
    with replacing(path) as working:
        working.write_text(config_text(config), encoding="utf-8")


def config_text(config: TrainerConfig) -> str:
    """A configuration as TOML. Raises `ConfigurationError` as `write_config`."""
    return _HEADER + tomli_w.dumps(to_table(config))


def as_recorded(config: TrainerConfig) -> TrainerConfig:
    """What reading the file of a configuration gives: an equal one, in which also the order of tables within options is
    that of the file. Raises `ConfigurationError` as `write_config`."""
    return from_table(tomllib.loads(config_text(config)))


def from_table(table: Mapping[str, object], file: Path | None = None) -> TrainerConfig:
    """The configuration that a table of plain values, read from `file`, describes; raises `ConfigurationError`."""
    config, problems = _read_table(table)
    if problems:
        raise ConfigurationError([*problems, *problems_of(config, TrainerConfig)], file)
    return config


def _read_table(table: Mapping[str, object]) -> tuple[TrainerConfig, list[Problem]]:
    reader = TableReader(TrainerConfig)
    return reader.read(TrainerConfig, table), reader.problems


def to_table(config: TrainerConfig) -> dict[str, object]:
    """A configuration as plain values, without the fields that are `None`; raises `ConfigurationError`."""
    problems: list[Problem] = []
    table = _plain_section(config, "", problems)
    if problems:
        raise ConfigurationError(problems)
    return table


def _unreadable(path: Path, expected: str, cure: str) -> ConfigurationError:
    return ConfigurationError([Problem(field="config", value=str(path), expected=expected, cure=cure)])


class TableReader:
    """Makes sections of tables of plain values; what is wrong goes to `problems` and keeps its default.

    `root` is what all sections belong to, so that a misplaced setting can be told its place.
    """

    def __init__(self, root: type) -> None:
        self.problems: list[Problem] = []
        self._root = root

    def read(self, kind: Any, table: Mapping[str, object], prefix: str = "") -> Any:
        """The section `kind` from a table."""
        settings = settings_of(kind)
        former = former_names(kind)
        values: dict[str, object] = {}
        for given, raw in table.items():
            name = former.get(given, given)
            if name not in settings:
                self.problems.append(self._unknown(given, raw, prefix, settings))
                continue
            if name != given and name in table:
                self.problems.append(given_twice(prefix + name, given, [table[name], raw]))
                continue
            setting, path = settings[name], prefix + name
            section, item = section_type(setting.hint), table_type(setting.hint)
            value = _convert(setting.hint, raw)
            if section is not None and isinstance(raw, Mapping):
                value = self.read(section, cast(Mapping[str, object], raw), path + ".")
            elif item is not None and isinstance(value, tuple):
                value = self._tables(item, cast("tuple[object, ...]", value), path)
            elif not fits(setting.hint, value):
                self.problems.append(wrong_type(raw, setting, path))
                continue
            values[name] = value
        return kind(**values)

    def _tables(self, kind: Any, items: Sequence[object], path: str) -> tuple[object, ...]:
        tables: list[object] = []
        for index, raw in enumerate(items):
            place = f"{path}[{index}]"
            if isinstance(raw, Mapping):
                tables.append(self.read(kind, cast(Mapping[str, object], raw), place + "."))
            else:
                cure = f"write [[{path}]] and its settings below it"
                self.problems.append(Problem(field=place, value=raw, expected="a table of settings", cure=cure))
        return tuple(tables)

    def _unknown(self, name: str, value: object, prefix: str, known: Mapping[str, object]) -> Problem:
        homes = [
            (f"[{place.section}]" if place.section else "the top of the file")
            + ("" if name == place.name else f" as {place.name}")
            for place in places_named(name, self._root)
        ]
        own = nearest(name, known)
        similar = similar_settings(name, self._root)
        if homes:
            cure = f"move it to {' or '.join(homes)}"
        elif prefix.endswith("]."):  # in a table of a list, a near name of another section is hardly meant
            cure = own
        else:
            cure = own if not similar or own.startswith("did you mean") else f"did you mean {' or '.join(similar)}?"
        expected = f"a setting of [{prefix[:-1]}]" if prefix else "a setting or a section"
        return Problem(field=prefix + name, value=value, expected=expected, cure=cure)


def _convert(hint: Any, value: object) -> object:
    """TOML has lists and texts where a configuration has tuples and paths."""
    if isinstance(value, list):
        return tuple(cast(list[object], value))
    if isinstance(value, str) and value and fits(hint, Path()):  # Path("") would be the present folder
        return Path(value)
    if type(value) is int and fits(hint, 0.5):
        return float(value)
    return value


def _plain_section(config: object, prefix: str, problems: list[Problem]) -> dict[str, object]:
    table: dict[str, object] = {}
    for name, setting in settings_of(type(config)).items():
        value, path = cast(object, getattr(config, name)), prefix + name
        kind = section_type(setting.hint)
        if kind is not None and isinstance(value, kind):
            table[name] = _plain_section(value, path + ".", problems)
        elif isinstance(value, Mapping):
            table[name] = plain_option(value, path, problems)
        elif value is not None or kind is not None:
            table[name] = _plain(value, path, problems)
    return table


def _plain(value: object, path: str, problems: list[Problem]) -> object:
    """A field's value; of the subclasses of numbers and text (numpy's float64, enums) what they have in common."""
    match value:
        case bool():
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case str():
            return str.__str__(value)
        case Path():
            return str(value)
        case list() | tuple():
            items = cast(Sequence[object], value)
            return [_plain(item, f"{path}[{index}]", problems) for index, item in enumerate(items)]
        case _ if is_dataclass(value):
            return _plain_section(value, path + ".", problems)
        case _:
            expected = "true or false, a number, text, or a list of those"
            cure = "give it in such a form; `orchestrator train --help-all` explains every setting"
            problems.append(Problem(field=path, value=value, expected=expected, cure=cure))
            return ""
