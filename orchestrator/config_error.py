"""The error that a wrong configuration ends in: a list of problems, each with its cure."""

from __future__ import annotations

import difflib
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WIDTH = 100
_VALUE_WIDTH = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: the path of the field, the value seen, what was expected, what to do."""

    field: str
    value: object
    expected: str
    cure: str

    def __str__(self) -> str:
        value = textwrap.shorten(repr(self.value), _VALUE_WIDTH, placeholder=" ...")
        lines = [f"{self.field} = {value}"]
        for label, text in (("expected: ", self.expected), ("cure:     ", self.cure)):
            indent = "  " + " " * len(label)
            lines.append(textwrap.fill(text, _WIDTH, initial_indent="  " + label, subsequent_indent=indent))
        return "\n".join(lines)


class ConfigurationError(ValueError):
    """The configuration cannot work; `problems` lists everything that is wrong with it at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        listing = "\n\n".join(textwrap.indent(str(problem), "  ") for problem in self.problems)
        return f"{count} in the configuration; nothing was started.\n\n{listing}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...` for the known names closest to a wrong one, or the list of all known names."""
    known = list(known)
    matches = difflib.get_close_matches(name, known, n=3)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    return f"use one of {', '.join(known)}"
