"""The words of the command line as values of settings, and what is wrong with those that are none."""

from __future__ import annotations

import decimal
import difflib
import json
import re
import tomllib
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from orchestrator.config.error import ConfigurationError, Problem
from orchestrator.config.fields import bare, describe, fits, leaves, settings_of, table_type
from orchestrator.config.file import from_table
from orchestrator.config.former_names import flag_name
from orchestrator.config.presets import preset_names
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
            yield _unknown_flag(flag, value, options)
        else:
            yield _stray_word(word, arguments)
        word = following


def _unknown_flag(flag: str, value: str, options: Sequence[str]) -> Problem:
    name = flag_name(flag) or flag.lstrip("-")
    expected, cure = "a setting of a run", _similar_flags(name, options)
    for path, hint, _ in leaves(TrainerConfig()):
        key = name.removeprefix(path)
        if key == name or key[:1] not in ("", "."):
            continue
        if table_type(hint) is not None:
            expected = "no flag: it is a list of tables, which a file says"
            cure = f"write [[{path}]] for each, and its settings below it, in a TOML file, and give that by --config"
        elif get_origin(bare(hint)) is Mapping:
            cure = f"write {flag_of(path)} {key[1:]}={value or '...'}"
    return Problem(field=flag, value=value or "(no value)", expected=expected, cure=cure)


def _similar_flags(name: str, options: Sequence[str]) -> str:
    similar = difflib.get_close_matches(name, options, n=1) or similar_settings(name, TrainerConfig)
    if not similar:
        return "see `orchestrator train --help-all` for every setting"
    return f"did you mean {' or '.join(flag_of(path) for path in similar)}?"


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
            cure = f"write {flag_of(name)} to switch it on, {off} to switch it off"
            if word.lower() in _YES + _NO:
                cure = f"write {flag_of(name) if word.lower() in _YES else off} alone"
            return Problem(field=flag_of(name), value=word, expected="no value: it is a switch", cure=cure)
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
    if word in preset_names():
        return f"write --preset {word}"
    return f"if it is an environment, write --environment {word}"


def flag_of(path: str) -> str:
    return f"--{path.replace('_', '-')}"


def settings_registry() -> ConstructorRegistry:
    """Teaches tyro to read numbers and paths as people write them, `environment_options`, a table of any keys, as words
    KEY=VALUE, and lists of tables."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_numbers)
    registry.primitive_rule(_path)
    registry.primitive_rule(_option_table)
    registry.primitive_rule(_task_list)
    return registry


def parse_whole_number(word: str) -> int:
    """A whole number as people write them: 1000000, 1_000_000, 1e6. Raises `ValueError` otherwise."""
    try:
        number = decimal.Decimal(word)
        if number == 0 or (number.is_finite() and number.adjusted() < _DIGITS and number == int(number)):
            return int(number)
    except decimal.InvalidOperation:
        number = None
    raise ValueError(f"{word} is no whole number: {_whole_number_cure(word, number)}")


def _whole_number_cure(word: str, number: decimal.Decimal | None) -> str:
    if number is not None and number.is_finite() and 0 < number.adjusted() < _DIGITS:
        return f"write {int(number)} or {int(number) + 1}"
    if number is not None and "e-" in word.lower():
        return f"did you mean {word.lower().replace('e-', 'e')}?"
    if word.replace(",", "").isdigit():
        return f"write {word.replace(',', '')}"
    return "write it as 1000000, 1_000_000 or 1e6"


def parse_number(word: str) -> float:
    """Raises `ValueError` for what is no number."""
    try:
        return float(word)
    except ValueError:
        pass
    raise ValueError(f"{word} is no number: write it as 0.001 or 1e-3")


def _numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Numbers, lists of them, and numbers that may be None or a word: with an error that says which word is none."""
    alternatives = get_args(info.type) if get_origin(info.type) in (Union, types.UnionType) else (info.type,)
    names: dict[str, str | None] = {}
    kinds: list[Any] = []
    for one in map(bare, alternatives):
        if one is types.NoneType:
            names["None"] = None
        elif get_origin(one) is Literal:
            names |= {name: name for name in get_args(one)}
        else:
            kinds.append(one)
    is_list = [get_origin(one) is tuple for one in kinds] == [True]
    items = list(get_args(kinds[0])) if is_list else kinds
    if not items or items[0] not in _NUMBERS or (len(items) > 1 and not is_list):
        return None
    parse, metavar = _NUMBERS[items[0]]

    def parse_one(words: list[str]) -> Any:
        try:
            return names[words[0]] if words[0] in names else parse(words[0])
        except ValueError as error:
            raise ValueError(", or ".join([str(error), *names])) from None

    if not is_list:
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="|".join([*(f"{{{name}}}" for name in names if name == "None"), metavar, *_braced(names)]),
            instance_from_str=parse_one,
            is_instance=lambda value: fits(info.type, value),
            str_from_instance=lambda value: [str(value)],
        )
    count = None if Ellipsis in items else len(items)

    def parse_list(words: list[str]) -> tuple[float, ...]:
        if any("," in word for word in words):
            raise ValueError(f"{' '.join(words)}: write {' '.join(words).replace(',', ' ')}, without commas")
        if count not in (None, len(words)):
            raise ValueError(f"{' '.join(words) or 'nothing'} where {count} numbers belong")
        return tuple(map(parse, words))

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{metavar} ...]" if count is None else " ".join([metavar] * count),
        instance_from_str=parse_list,
        is_instance=lambda value: fits(info.type, value),
        str_from_instance=lambda values: [str(value) for value in values] or ["nothing"],
    )


def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A path, or None: nothing, as a shell makes of a variable that is not set, would be the present folder."""
    if info.type != Path | None:
        return None

    def parse(words: list[str]) -> Path | None:
        if not words[0]:
            raise ValueError("'' is no path: write . for the present folder")
        return None if words[0] == "None" else Path(words[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}|PATH",
        instance_from_str=parse,
        is_instance=lambda value: value is None or isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


def _braced(names: Mapping[str, str | None]) -> list[str]:
    choices = [name for name in names if name != "None"]
    return [f"{{{','.join(choices)}}}"] if choices else []


_NUMBERS: dict[Any, tuple[Callable[[str], float], str]] = {
    int: (parse_whole_number, "INT"),
    float: (parse_number, "FLOAT"),
}


def missing_choices(arguments: Sequence[str]) -> list[str]:
    """What is to be said of flags of `arguments` that come without the word that they need, one of few."""
    found: list[str] = []
    hints = {path: hint for path, hint, _ in leaves(TrainerConfig())}
    for flag, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        hint = bare(hints.get(flag_name(flag) or ""))
        if get_origin(hint) is Literal and "=" not in flag and following.startswith("--"):
            found.append(f"{flag} needs {describe(hint)}")
    return found


def _option_table(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if get_origin(info.type) is not Mapping:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[KEY=VALUE ...]",
        instance_from_str=parse_options,
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
    setting, equals, value = word.partition("=")
    if setting in settings_of(EvaluationTask) and equals:
        value = value if value.isdigit() or value in ("true", "false") else json.dumps(value.strip("\"'"))
        raise ValueError(f"the settings of a task stand in braces: write '{{{setting}={value}}}'")
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


def parse_options(words: Sequence[str]) -> dict[str, object]:
    """What each `KEY=VALUE` says, and each inline table of TOML, as a file has it. Raises `ValueError` otherwise."""
    options: dict[str, object] = {}
    for word in words:
        if not word.startswith("{"):
            key, value = parse_option(word)
            options[key] = value
            continue
        try:
            options |= tomllib.loads(f"options = {word}")["options"]
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ValueError(f"{word} is no inline table of TOML ({error}); write KEY=VALUE for each option") from error
    return options


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
