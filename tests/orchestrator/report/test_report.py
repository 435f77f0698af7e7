"""The report of runs: what is read from their folders, the table, the page, the command."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from orchestrator.__main__ import main
from orchestrator.report import RunRecordError, print_table, read_run
from orchestrator.report.charts import thinned
from orchestrator.report.formats import UNKNOWN, duration, number, ticks, time_unit
from orchestrator.report.page import page
from orchestrator.report.summary import hook_summaries, rows, unique_names
from tests.orchestrator.report.runs import record, write_run, write_trace

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.report import RunRecord


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return read_run(write_run(tmp_path / "first", [record(epoch) for epoch in range(1, 11)]))


# What is read.


def test_a_line_that_a_kill_has_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [record(1), record(2)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record(3))[:40])
    assert read_run(folder).column("epoch") == [1, 2]


def test_of_epochs_that_a_resumed_run_has_repeated_the_newest_count(tmp_path: Path) -> None:
    again = {"hook/upload/busy_seconds": 0.1, "rollout/recent_return": 7.0}
    records = [record(1), record(2), record(3), record(2, **again), record(3)]
    read = read_run(write_run(tmp_path / "run", records))
    assert read.column("epoch") == [1, 2, 3]
    assert read.column("rollout/recent_return") == [9.0, 7.0, 27.0]


def test_counters_that_begin_again_are_added_up(tmp_path: Path) -> None:
    seconds = [1.0, 3.0, 0.5, 2.0]
    records = [record(epoch, **{"hook/upload/busy_seconds": one}) for epoch, one in enumerate(seconds, 1)]
    assert read_run(write_run(tmp_path / "run", records)).counted("hook/upload/busy_seconds") == 5.0


def test_values_that_are_not_known_leave_gaps(tmp_path: Path) -> None:
    records = [record(1), record(2, **{"rollout/recent_return": None}), record(3, **{"rollout/recent_return": "nan"})]
    read = read_run(write_run(tmp_path / "run", records))
    assert read.points("epoch", "rollout/recent_return") == [(1, 9.0)]
    assert read.last("rollout/recent_return") == 9.0


def test_evaluations_are_placed_where_their_policy_was(tmp_path: Path) -> None:
    scores = [None, None, (1, 5.0), (1, 5.0), (3, 6.0)]
    records = [
        record(epoch) if score is None else record(epoch, **{"eval/policy_version": score[0], "eval/score": score[1]})
        for epoch, score in enumerate(scores, 1)
    ]
    assert read_run(write_run(tmp_path / "run", records)).evaluations() == [(1000, 5.0), (3000, 6.0)]


def test_folders_that_are_no_runs_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunRecordError, match=r"nowhere does not exist; give the folder of a run"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(RunRecordError, match=r"has no metrics\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(RunRecordError, match="has no epoch yet"):
        read_run(write_run(tmp_path / "begun", []))


# What is said of it.


def test_runs_with_and_without_cells_have_the_same_rows(tmp_path: Path) -> None:
    times = {"time/exchange": 0.05, "time/wait_cells": 0.01}
    write_run(tmp_path / "cells", [record(epoch, **times) for epoch in (1, 2)])
    write_run(tmp_path / "one", [record(epoch) for epoch in (1, 2)])
    several, one = (dict(rows(read_run(tmp_path / name))) for name in ("cells", "one"))
    assert list(several) == list(one)
    assert several["cells compute, share of learning"] == "80.0 %"
    assert one["cells compute, share of learning"] == UNKNOWN


def test_the_summary_has_the_fractions_of_the_time(run: RunRecord) -> None:
    said = dict(rows(run))
    assert said["agent steps"] == "10,000"
    assert said["time"] == "5 s"
    assert said["steps per second"] == "2,000"
    assert said["critical path: learn"] == "60.0 %"
    assert said["critical path: collect"] == "20.0 %"
    assert said["collectors busy"] == "80.0 %"
    assert said["learner waits for collectors"] == "20.0 %"
    assert said["collection hidden behind learning"] == "75.0 %"
    assert said["policy published to used"] == "2 ms"
    assert said["return, last 100 episodes"] == "90"


def test_hooks_are_divided_into_what_was_hidden_and_what_was_exposed(run: RunRecord) -> None:
    (hook,) = hook_summaries(run)
    assert (hook.name, hook.handled, hook.failed, hook.skipped, hook.lag) == ("upload", 10, 0, 2, 2)
    assert hook.busy == pytest.approx(2.0)
    assert hook.exposed == pytest.approx(0.5)
    assert hook.hidden == pytest.approx(1.5)


def test_metrics_of_an_older_run_give_what_they_have(tmp_path: Path) -> None:
    records = [{"epoch": epoch, "agent_step": 10 * epoch, "time/seconds": float(epoch)} for epoch in (1, 2)]
    read = read_run(write_run(tmp_path / "run", records))
    output = io.StringIO()
    print_table([read], Console(file=output, width=100))
    assert "agent steps" in output.getvalue()
    assert "critical" not in output.getvalue()
    assert "Summary" in page([read])


def test_runs_are_named_by_as_much_as_tells_them_apart(tmp_path: Path) -> None:
    paths = ["a/seed-1", "b/seed-1", "b/seed-2"]
    runs = [read_run(write_run(tmp_path / path, [record(1)])) for path in paths]
    assert unique_names(runs) == paths
    assert unique_names(runs[1:]) == ["seed-1", "seed-2"]
    assert unique_names([runs[0], runs[0]]) == ["seed-1", "seed-1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00001234, "1.2e-05"),
        (0.0123, "0.0123"),
        (1.0, "1"),
        (12.345, "12.3"),
        (1234, "1234"),
        (9_999.6, "10k"),
        (123_456, "123k"),
        (999_600, "1M"),
        (-2_500_000, "-2.5M"),
        (None, "-"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.00085, "850 µs"), (0.0123, "12.3 ms"), (4.5, "4.5 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_are_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 0.17), (-3, 4), (0, 999_999), (1e-6, 3e-6), (7, 7)])
def test_ticks_are_few_round_numbers_within_the_range(low: float, high: float) -> None:
    made = ticks(low, high)
    assert 1 <= len(made) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in made)
    digits = [f"{abs(tick):.9e}".partition("e")[0].replace(".", "").rstrip("0") for tick in made]
    assert all(len(one) <= 3 for one in digits)


def test_long_curves_are_thinned_to_their_means() -> None:
    points = [(float(x), float(x % 2)) for x in range(1000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert all(y == 0.5 for _, y in few)
    assert thinned(points[:3]) == points[:3]
    assert time_unit(10_000) == ("min", 60.0)


# The page.


class Reader(HTMLParser):
    """Notes what a page refers to and whether its elements are closed in order."""

    VOID = ("meta", "link", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def test_the_page_needs_nothing_but_itself(run: RunRecord) -> None:
    text = page([run, run])
    assert read_page(text).references == ["data:,"]
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|import\s*\(", text)


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<"  # a slash would be a folder
    metric = "loss/</script><b>"
    read = read_run(write_run(folder, [record(1, **{metric: 1.0}), record(2, **{metric: 2.0})], environment="<i>x</i>"))
    text = page([read])
    read_page(text)
    assert "<script>alert" not in text
    assert "<i>x</i>" not in text
    assert text.count("</script>") == text.count("<script")


def test_a_run_with_a_single_epoch_can_be_drawn(tmp_path: Path) -> None:
    text = page([read_run(write_run(tmp_path / "run", [record(1)]))])
    read_page(text)
    assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)


def test_the_time_line_is_drawn_from_the_trace_where_there_is_one(run: RunRecord) -> None:
    assert "A run with <code>--metrics.trace</code>" in page([run])
    write_trace(run.folder, 10)
    text = page([read_run(run.folder)])
    read_page(text)
    assert "epochs 4 to 7; the rest is in trace.json" in text
    assert "evaluate: 100 ms" in text
    (run.folder / "trace.json").write_text("no trace")
    assert "A run with <code>--metrics.trace</code>" in page([read_run(run.folder)])


# The command.


def test_the_command_prints_the_table_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write_run(tmp_path / name, [record(1), record(2)]) for name in ("first", "second")]
    assert main(["report", *map(str, folders)]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0].split() == ["first", "second"]
    assert "hooks of second" in output
    assert output.splitlines()[-1] == str(folders[0] / "report.html")
    assert "<h1>Training report</h1>" in (folders[0] / "report.html").read_text()

    assert main(["report", str(folders[1]), "--output", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").exists()
    assert not (folders[1] / "report.html").exists()


def test_the_command_says_what_is_wrong_with_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"orchestrator report: {tmp_path} has no metrics.jsonl")
    assert "Traceback" not in error
    assert main(["report"]) == 2
    assert "give the folder of at least one run" in capsys.readouterr().err
