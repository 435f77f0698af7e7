"""Whose code runs: settings name code, and those written by others may run it only if they are trusted.

What the user wrote is trusted: settings in code, on the command line, and in files on this machine. What came with a
checkpoint from an address, or in a request to a service, is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, cast

from orchestrator.config.annotations import LEADS_TO_CODE, NAMES_ENVIRONMENT, NO_CODE, Environment, NamesCode
from orchestrator.config.error import ConfigurationError, Problem
from orchestrator.config.fields import leaves, notes
from orchestrator.config.options import DEPTH
from orchestrator.config.own_code import is_standard_library

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.settings import TrainerConfig

_BUILT_IN = frozenset({"orchestrator.environments.memory:make"})
_LOOKS_LIKE_CODE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\s/:][^\s:]*")
"""`module:function` or `module:id`, where no annotation says so: in options, too, environments may take it for code."""


def check_trust(config: TrainerConfig, origin: str, *, own: TrainerConfig | None = None) -> None:
    """Raises `ConfigurationError` that lists all code which `config`, as it came from `origin`, would have run.

    The networks, losses and environments of this project, and environments that installed packages have registered
    with gymnasium, need no trust; neither does what the user's `own` settings name, too.
    """
    trusted = set(_BUILT_IN) if own is None else _BUILT_IN | {name for _, name in named_code(own)}
    problems = [_problem(field, name, origin) for field, name in named_code(config) if name not in trusted]
    if problems:
        raise ConfigurationError(problems, f"the settings from {origin}")


def named_code(config: TrainerConfig) -> Iterator[tuple[str, str]]:
    """Path and value of every setting that names code, wherever it is. Imports nothing."""
    for path, hint, text in (found for leaf in leaves(config) for found in _texts(*leaf)):
        said = notes(hint)
        if NAMES_ENVIRONMENT in said or any(isinstance(note, NamesCode) for note in said):
            if ":" in text:
                yield path, text
        elif LEADS_TO_CODE in said:
            if text != "auto":
                yield path, text
        elif NO_CODE not in said and _LOOKS_LIKE_CODE.fullmatch(text.strip()):
            yield path, text


def _texts(path: str, hint: Any, value: object, depth: int = 0) -> Iterator[tuple[str, Any, str]]:
    if depth > DEPTH:
        expected = f"at most {DEPTH} levels of lists and tables within each other"
        cure = "use fewer levels, and nothing that contains itself: what is further down cannot be looked at"
        raise ConfigurationError([Problem(field=path[:100], value="(more levels)", expected=expected, cure=cure)])
    if isinstance(value, str):
        yield path, hint, value
    elif is_dataclass(value):
        for leaf in leaves(value, f"{path}."):
            yield from _texts(*leaf)
    elif isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield from _texts(f"{path} (a key)", hint, key, depth + 1)
            yield from _texts(f"{path}.{key}", Environment if key == "environment" else hint, item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(cast("list[object]", value)):
            yield from _texts(f"{path}[{index}]", hint, item, depth + 1)


def _problem(field: str, name: str, origin: str) -> Problem:
    expected = f"no code to run: these settings are not yours, they came from {origin}"
    if is_standard_library(name.partition(":")[0].strip()):
        cure = "do not use them: a name in Python's standard library is never called, whoever trusts it"
    else:
        cure = "if you know what that code does, let it run with --trust-code (trust_code=True in code)"
    return Problem(field=field, value=name, expected=expected, cure=cure)
