"""What a run's folder says about the run: its settings, and its epochs' metrics as columns."""

from __future__ import annotations

import functools
import itertools
import json
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from orchestrator.report.trace_file import TraceFile, read_trace
from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

METRICS = "metrics.jsonl"


class RunRecordError(OrchestratorError, ValueError):
    """A folder that no report can be made of; the message says what to do."""


@dataclass(frozen=True)
class RunRecord:
    """One run. `epochs` are its records in order, each epoch once: the newest where a resumed run repeated some."""

    folder: Path
    name: str
    settings: Mapping[str, Any]
    epochs: Sequence[Mapping[str, float | None]]
    trace_path: Path | None = None

    @functools.cached_property
    def trace(self) -> TraceFile | None:
        """The newest trace of the run, read when first asked for."""
        return None if self.trace_path is None else read_trace(self.trace_path)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics of the last epoch."""
        return tuple(self.epochs[-1])

    def column(self, name: str) -> list[float | None]:
        """A metric over the epochs; None where it is not known."""
        return [record.get(name) for record in self.epochs]

    def points(self, x: str, y: str) -> list[tuple[float, float]]:
        """Pairs of two metrics, of the epochs in which both are known."""
        pairs = ((record.get(x), record.get(y)) for record in self.epochs)
        return [(one, other) for one, other in pairs if one is not None and other is not None]

    def last(self, name: str) -> float | None:
        """The newest known value of a metric."""
        return next((value for value in reversed(self.column(name)) if value is not None), None)

    def total(self, name: str) -> float | None:
        """The sum of a metric over the epochs; None where no epoch has it."""
        known = [value for value in self.column(name) if value is not None]
        return sum(known) if known else None

    def counted(self, name: str) -> float | None:
        """The last value of a metric that only grows, but begins again at 0 when a run is resumed."""
        known = [value for value in self.column(name) if value is not None]
        if not known:
            return None
        return known[0] + sum(
            after - before if after >= before else after for before, after in itertools.pairwise(known)
        )

    def hooks(self) -> list[str]:
        """Names of the hooks, as the metrics have them."""
        found = (re.fullmatch(r"hook/(.+)/busy_seconds", name) for name in self.names)
        return [match[1] for match in found if match]

    def warnings(self) -> list[str]:
        """Problems of learning that the run has warned of."""
        prefix = "warnings/"
        found = {name for record in self.epochs for name, value in record.items() if name.startswith(prefix) and value}
        return sorted(name.removeprefix(prefix) for name in found)

    def evaluations(self) -> list[tuple[float, float]]:
        """Agent steps of the policy that was evaluated, and its score."""
        steps = {record["epoch"]: record.get("agent_step") for record in self.epochs}
        scores: dict[float, float] = {}
        for record in self.epochs:
            step, score = steps.get(record.get("eval/policy_version")), record.get("eval/score")
            if step is not None and score is not None:
                scores[step] = score
        return sorted(scores.items())


def read_run(folder: Path) -> RunRecord:
    """Reads a run that is over, in progress, or was killed. Raises RunRecordError."""
    path = folder / METRICS
    if not path.is_file():
        what = "does not exist" if not folder.exists() else f"has no {METRICS}"
        raise RunRecordError(
            f"{folder} {what}; give the folder of a run (runs/...) that was not trained with --metrics.no-jsonl"
        )
    epochs = {record["epoch"]: record for record in _records(path)}
    if not epochs:
        raise RunRecordError(f"{path} has no epoch yet; wait for the end of the first, or choose another run")
    traces = sorted(folder.glob("trace*.json"), key=lambda trace: trace.stat().st_mtime)
    return RunRecord(
        folder=folder,
        name=folder.resolve().name,
        settings=_settings(folder / "config.toml"),
        epochs=[epochs[epoch] for epoch in sorted(epochs)],
        trace_path=traces[-1] if traces else None,
    )


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut off by a kill
            if isinstance(record, dict) and isinstance(record.get("epoch"), int):
                record = cast("dict[str, Any]", record)
                yield {name: value for name, value in record.items() if value is None or _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _settings(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return {}
