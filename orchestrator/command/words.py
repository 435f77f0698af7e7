"""The words of the command line as values of settings, and what is wrong with those that are none."""

from __future__ import annotations

import decimal
import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from orchestrator.config.error import ConfigurationError, Problem
from orchestrator.config.fields import leaves
from orchestrator.config.file import from_table
from orchestrator.config.former_names import flag_name
from orchestrator.config.settings import EvaluationTask, TrainerConfig
from orchestrator.config.similar import similar_settings
from orchestrator.config.user_path import user_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Switch: TypeAlias = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
"""Off unless it is given, which goes without saying."""

_PLAIN_WORD = re.compile(r"([A-Za-z_]|\.{0,2}/)[\w./:@+-]*")
_NOT_TOML = {"True": "true", "False": "false", "None": "left out: TOML has no null"}
_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")
_DIGITS = 30  # of the longest whole number that any setting could mean


def unknown_words(unknown: Sequence[str], arguments: Sequence[str], options: Sequence[str]) -> list[Problem]:
    """What is wrong with words of the `arguments` of a training that are neither settings nor `options`."""
    return list(_unknown_words(unknown, arguments, options))


def _unknown_words(unknown: Sequence[str], arguments: Sequence[str], options: Sequence[str]) -> Iterator[Problem]:
    words = iter(unknown)
    word = next(words, None)
    while word is not None:
        following = next(words, None)
        if word.startswith("-"):
            flag, _, value = word.partition("=")
            if not value and following is not None and not following.startswith("-"):
                value, following = following, next(words, None)
            cure = _similar_flags(flag, options)
            yield Problem(field=flag, value=value or "(no value)", expected="a setting of a run", cure=cure)
        else:
            yield _stray_word(word, arguments)
        word = following


def _similar_flags(flag: str, options: Sequence[str]) -> str:
    name = flag_name(flag) or flag.lstrip("-")
    similar = difflib.get_close_matches(name, options, n=1) or similar_settings(name, TrainerConfig)
    if not similar:
        return "see `orchestrator train --help` for every setting"
    return f"did you mean {' or '.join(_flag(path) for path in similar)}?"


def _stray_word(word: str, arguments: Sequence[str]) -> Problem:
    expected = "settings, which begin with --"
    switches = {path for path, _, value in leaves(TrainerConfig()) if isinstance(value, bool)}
    for before, argument in zip(["", *arguments], [*arguments, ""], strict=True):
        flag, equals, value = argument.partition("=")
        if (value if equals else flag) != word:
            continue
        name = flag_name(flag) if equals else None if "=" in before else flag_name(before)
        if name in switches:
            section, _, last = name.rpartition(".")
            off = f"--{section}.no-{last.replace('_', '-')}"
            cure = f"write {_flag(name)} to switch it on, {off} to switch it off"
            if word.lower() in _YES + _NO:
                cure = f"write {_flag(name) if word.lower() in _YES else off} alone"
            return Problem(field=_flag(name), value=word, expected="no value: it is a switch", cure=cure)
    return Problem(field="argument", value=word, expected=expected, cure=_place_of(word))


def _place_of(word: str) -> str:
    """Which flag a word that comes alone belongs to."""
    path = user_path(word)
    if "://" in word or path.is_dir():
        return f"to resume a run, write --resume {word}; for a new run in that folder, --run-dir {word}"
    if path.suffix == ".toml":
        return f"write --config {word}"
    if path.is_file():
        return f"settings are read by --config, from a TOML file; {word} is a file of another kind"
    return f"if it is an environment, write --environment {word}"


def _flag(path: str) -> str:
    return f"--{path.replace('_', '-')}"


def settings_registry() -> ConstructorRegistry:
    """Teaches tyro to read whole numbers as people write them, `environment_options`, a table of any keys, as words
    KEY=VALUE, and lists of tables."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_whole_number)
    registry.primitive_rule(_option_table)
    registry.primitive_rule(_task_list)
    return registry


def _whole_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: parse_whole_number(words[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def parse_whole_number(word: str) -> int:
    """A whole number as people write them: 1000000, 1_000_000, 1e6. Raises `ValueError` otherwise."""
    try:
        number = decimal.Decimal(word)
        if number == 0 or (number.is_finite() and number.adjusted() < _DIGITS and number == int(number)):
            return int(number)
    except decimal.InvalidOperation:
        pass
    raise ValueError(f"{word} is no whole number: write 1000000, 1_000_000 or 1e6")


def _option_table(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if get_origin(info.type) is not Mapping:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[KEY=VALUE ...]",
        instance_from_str=lambda words: dict(map(parse_option, words)),
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda options: (
            [f"{key}={json.dumps(value, default=str)}" for key, value in options.items()] or ["nothing"]
        ),
    )


def _task_list(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if info.type != tuple[EvaluationTask, ...]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[ENVIRONMENT|{SETTING=VALUE,...} ...]",
        instance_from_str=lambda words: tuple(map(parse_task, words)),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda tasks: (
            [task.name or task.environment or "the training's" for task in tasks] or ["nothing"]
        ),
    )


def parse_task(word: str) -> EvaluationTask:
    """The task that the name of an environment, or an inline table of TOML with a task's settings, stands for.

    Raises `ValueError` otherwise.
    """
    if not word.startswith("{"):
        return EvaluationTask(environment=word)
    try:
        table = tomllib.loads(f"task = {word}")
    except tomllib.TOMLDecodeError as error:
        example = '{environment="CartPole-v1", episodes=5}'
        raise ValueError(f"{word} is no inline table of TOML ({error}), such as {example}") from error
    try:
        return from_table({"evaluation": {"tasks": [table["task"]]}}).evaluation.tasks[0]
    except ConfigurationError as error:
        wrong = [f"{name.field.rpartition('.')[2]} ({name.expected}; {name.cure})" for name in error.problems]
        raise ValueError(f"wrong in {word}: {', '.join(wrong)}") from error


def parse_option(word: str) -> tuple[str, object]:
    """Key and value of `KEY=VALUE`, where the value is a TOML literal or a word that needs no quotes.

    Raises `ValueError` otherwise.
    """
    key, equals, text = word.partition("=")
    if not key or not equals:
        raise ValueError(f"{word} is not KEY=VALUE")
    try:
        table = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        table = {}
    if list(table) == ["value"]:
        return key, table["value"]
    if _PLAIN_WORD.fullmatch(text) and text not in _NOT_TOML:
        return key, text
    cure = _NOT_TOML.get(text, f"a TOML literal: true, 3, 0.5, [1, 2], or '\"{text}\"' for text")
    raise ValueError(f"the value of {word} must be {cure}")
