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
from orchestrator.config.former_names import former_names
from orchestrator.config.options import plain_option
from orchestrator.config.settings import TrainerConfig
from orchestrator.config.user_path import user_path
from orchestrator.replacing import replacing

_HEADER = "# The settings of a run: `orchestrator train --config <this file>` repeats it, in a new folder.\n\n"


def read_config(path: Path) -> TrainerConfig:
    """Reads a configuration; what the file does not say keeps its default.

    Raises `ConfigurationError` with everything that is wrong in the file: unknown settings (with the nearest
    names) and values of another type. Whether the values can work together is `check_config`'s subject.
    """
    path = user_path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        inside = path / "config.toml"
        cure = f"give {inside}" if inside.is_file() else "give the path of an existing TOML file"
        raise _unreadable(path, f"a file that can be read ({error.strerror})", cure) from error
    return parse_config(text, path)


def parse_config(text: bytes, path: Path) -> TrainerConfig:
    """As `read_config`, of what was read from `path`."""
    try:
        table = tomllib.loads(text.decode())
    except ValueError as error:  # of the syntax, or of the encoding
        raise _unreadable(path, "a TOML file", f"correct it: {error}") from error
    return from_table(table, path)


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
    reader = TableReader(TrainerConfig)
    config = reader.read(TrainerConfig, table)
    if reader.problems:
        raise ConfigurationError([*reader.problems, *problems_of(config, TrainerConfig)], file)
    return config


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
        former = {given: name for given, name in former_names(kind).items() if name not in table}
        names = dict.fromkeys(settings) | former
        values: dict[str, object] = {}
        for given, raw in table.items():
            if given not in names:
                self.problems.append(self._unknown(given, raw, prefix, settings))
                continue
            name = names[given] or given
            setting, path = settings[name], prefix + given
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
        sections = {other: section_type(setting.hint) for other, setting in settings_of(self._root).items()}
        homes = [f"[{other}]" for other, kind in sections.items() if kind is not None and name in settings_of(kind)]
        if prefix and name in sections:
            homes.append("the top of the file")
        cure = f"move it to {' or '.join(homes)}" if homes else nearest(name, known)
        expected = f"a setting of [{prefix[:-1]}]" if prefix else "a setting or a section"
        return Problem(field=prefix + name, value=value, expected=expected, cure=cure)


def _convert(hint: Any, value: object) -> object:
    """TOML has lists and texts where a configuration has tuples and paths."""
    if isinstance(value, list):
        return tuple(cast(list[object], value))
    if isinstance(value, str) and fits(hint, Path()):
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
            cure = "give it in such a form; `orchestrator train --help` explains every setting"
            problems.append(Problem(field=path, value=value, expected=expected, cure=cure))
            return ""
