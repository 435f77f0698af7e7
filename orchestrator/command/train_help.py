"""The short help of `orchestrator train`: of the help of all settings, what most runs need."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from typing import TYPE_CHECKING

from orchestrator.command.words import flag_of
from orchestrator.config.paths import PATH

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

EVERYTHING = "--help-all"
_WIDEST = 100
MOST_USED = (
    "--environment",
    "--preset",
    "--config",
    "--resume",
    "--run-dir",
    "--total-agent-steps",
    "--seed",
    flag_of(str(PATH.collection.num_environments)),
    flag_of(str(PATH.collection.environment_options)),
    flag_of(str(PATH.policy.network)),
    flag_of(str(PATH.learning.learning_rate)),
    flag_of(str(PATH.evaluation.every)),
)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the short help is asked for."""
    return EVERYTHING not in arguments and any(word in ("-h", "--help") for word in arguments)


@contextlib.contextmanager
def read_narrow() -> Generator[io.StringIO]:
    """What is printed, for a terminal on which there is no room for a second column."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(_WIDEST, shutil.get_terminal_size().columns))
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            yield printed
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def short_help(text: str) -> str:
    """The `text` of the help of all settings, made shorter. In it, a flag begins in the third column, and what is said
    of it follows further to the right; a text of another form stays as it is."""
    of_flag: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in map(str.rstrip, text.splitlines()):
        if line.startswith("  -"):
            lines = of_flag.setdefault(line.split()[0].rstrip(","), [])
        elif not line.startswith("   "):
            lines = []
        lines.append(line)
    if not of_flag.keys() >= set(MOST_USED):
        return text
    head, _, _ = text.partition("\n options ")
    most_used = "\n".join(line for flag in MOST_USED for line in of_flag[flag])
    return (
        f"{head}\nmost used options:\n{most_used}\n\n"
        f"`orchestrator train {EVERYTHING}` explains all options; `orchestrator presets` lists the presets."
    )
