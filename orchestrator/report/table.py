"""The report on the terminal: runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from orchestrator.report.formats import UNKNOWN, duration, epochs, share, whole
from orchestrator.report.summary import hook_summaries, rows, unique_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.report.run_record import RunRecord

_FEWEST_COLUMNS = 100
"""Columns of text taken where the output is no terminal: a pipe has no width to keep to."""


def print_table(runs: Sequence[RunRecord], console: Console | None = None) -> None:
    """Prints what is known of each run, a column each, then each run's hooks."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=max(_FEWEST_COLUMNS, 32 + 28 * len(runs)))
    names = unique_names(runs)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    listed = [rows(run) for run in runs]
    for place, (label, _) in enumerate(listed[0]):
        values = [one[place][1] for one in listed]
        if any(value != UNKNOWN for value in values):
            table.add_row(label, *values)
    console.print(table)
    for name, run in zip(names, runs, strict=True):
        hooks = hook_summaries(run)
        if hooks:
            console.print()
            console.print(hooks_table(f"hooks of {name}" if len(runs) > 1 else "hooks", run))


def hooks_table(title: str, run: RunRecord) -> Table:
    """How much of each hook's work was hidden behind the training, and how much the training waited for."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title)
    for heading in ("handled", "failed", "skipped", "at work", "hidden", "exposed", "share hidden", "most behind"):
        table.add_column(heading, justify="right")
    for hook in hook_summaries(run):
        table.add_row(
            hook.name,
            whole(hook.handled),
            whole(hook.failed),
            whole(hook.skipped),
            duration(hook.busy),
            duration(hook.hidden),
            duration(hook.exposed),
            share(hook.hidden, hook.busy),
            epochs(hook.lag),
        )
    return table
