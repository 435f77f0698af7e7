"""The error that a wrong configuration ends in: a list of problems, each with its cure."""

from __future__ import annotations

import difflib
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

_WIDTH = 100
_VALUE_WIDTH = 80
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: the path of the field, the value seen, what was expected, what to do."""

    field: str
    value: object
    expected: str
    cure: str
    formerly: str | None = None
    """The field's name in earlier releases, under which it may have been given."""

    def __str__(self) -> str:
        value = shown(self.value)
        if len(value) > _VALUE_WIDTH:
            value = f"{value[: _VALUE_WIDTH // 2]} ... {value[-_VALUE_WIDTH // 2 :]}"  # the end of a path says most
        name = self.field if self.formerly is None else f"{self.field} (formerly {self.formerly})"
        return f"{name} = {value}\n{_lines('expected: ', self.expected)}\n{_lines('cure:     ', self.cure)}"


def shown(value: object, form: Callable[[object], str] = repr) -> str:
    """A value as text, whatever it is: some numbers have too many digits for one, and objects may fail at it."""
    try:
        return form(value)
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {error}>"


def _lines(label: str, text: str) -> str:
    """Wrapped so that a path or a name to copy stays in one piece."""
    wrapper = textwrap.TextWrapper(_WIDTH, break_long_words=False, break_on_hyphens=False)
    wrapper.initial_indent, wrapper.subsequent_indent = "  " + label, "  " + " " * len(label)
    return wrapper.fill(text)


class ConfigurationError(OrchestratorError, ValueError):
    """The configuration cannot work; `problems` lists all that is wrong with it, `file` is where it came from: a file,
    or words for another place."""

    def __init__(self, problems: Sequence[Problem], file: Path | str | None = None) -> None:
        super().__init__(tuple(problems), file)
        self.problems = tuple(problems)
        self.file = file

    def __str__(self) -> str:
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        listing = "\n\n".join(textwrap.indent(str(problem), "  ") for problem in self.problems)
        place = "the configuration" if self.file is None else self.file
        return f"{count} in {place}; nothing was started.\n\n{listing}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...` with the known names closest to a wrong one, whatever their case, else the known names."""
    by_lower = {one.lower(): one for one in known}
    matches = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    shown = list(by_lower.values())[:_NAMES_SHOWN]
    return f"use one of {', '.join(shown)}{', ...' if len(by_lower) > _NAMES_SHOWN else ''}"
