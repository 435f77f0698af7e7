"""A run in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.report.formats import UNKNOWN, duration, number, share, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.report.run_record import RunRecord

CRITICAL = ("learn", "collect", "hooks", "host")
"""Parts of the critical path, `time/critical_<part>` in the metrics."""
ACTIVITIES = ("", "wait_", "hooks_", "host_")
"""Prefixes of what a task does, `time/<prefix><task>` in the metrics."""


@dataclass(frozen=True, slots=True)
class HookSummary:
    """What a hook did and cost over a run. Seconds: at work, and for how long the training waited for it."""

    name: str
    handled: float | None
    failed: float | None
    skipped: float | None
    """Gave way to a newer event, or refused at a full mailbox."""
    busy: float
    exposed: float
    lag: float | None
    """The most epochs that it was behind."""

    @property
    def hidden(self) -> float:
        return max(0.0, self.busy - self.exposed)


def hook_summaries(run: RunRecord) -> list[HookSummary]:
    """The hooks that had something to do, the busiest first."""
    found: list[HookSummary] = []
    for name in run.hooks():

        def counted(what: str, name: str = name) -> float | None:
            return run.counted(f"hook/{name}/{what}")

        lags = [lag for lag in run.column(f"hook/{name}/lag") if lag is not None]
        found.append(
            HookSummary(
                name,
                counted("handled"),
                counted("failed"),
                (counted("coalesced") or 0) + (counted("dropped") or 0),
                counted("busy_seconds") or 0.0,
                counted("blocked_seconds") or 0.0,
                max(lags, default=None),
            )
        )
    return sorted((hook for hook in found if hook.busy or hook.handled), key=lambda hook: -hook.busy)


def rows(run: RunRecord) -> list[tuple[str, str]]:
    """Name and value of what a table shows of a run; hooks are extra."""
    steps, seconds, epoch_seconds = run.last("agent_step"), run.last("time/seconds"), run.total("time/epoch")
    collecting, exposed = run.total("time/collect"), run.total("time/critical_collect")
    lag = run.total("time/policy_lag")
    listed = [
        ("environment", str(run.settings.get("environment", UNKNOWN))),
        ("staleness", str(run.settings.get("staleness", UNKNOWN))),
        ("epochs", whole(run.last("epoch"))),
        ("agent steps", whole(steps)),
        ("time", duration(seconds)),
        ("steps per second", whole(steps / seconds if steps is not None and seconds else None)),
        ("return, last 100 episodes", number(run.last("rollout/recent_return"))),
        ("newest evaluation", number(run.last("eval/score"))),
        ("warnings", ", ".join(run.warnings()) or "none"),
        ("time per epoch", duration(epoch_seconds / len(run.epochs) if epoch_seconds else None)),
    ]
    listed += [
        (f"critical path: {part}", share(run.total(f"time/critical_{part}"), epoch_seconds)) for part in CRITICAL
    ]
    listed += [
        ("collectors busy", share(collecting, epoch_seconds)),
        ("collectors wait for learner", share(run.total("time/wait_collect"), epoch_seconds)),
        ("learner busy", share(run.total("time/learn"), epoch_seconds)),
        ("learner waits for collectors", share(run.total("time/wait_learn"), epoch_seconds)),
        (
            "collection hidden behind learning",
            share(None if collecting is None or exposed is None else max(0.0, collecting - exposed), collecting),
        ),
        ("policy published to used", duration(None if lag is None else lag / len(run.epochs))),
    ]
    learning, exchange = run.total("time/learn"), run.total("time/exchange")
    computing = None
    if learning and exchange is not None:
        computing = learning - exchange - (run.total("time/wait_cells") or 0.0)
    return [*listed, ("cells compute, share of learning", share(computing, learning))]


def unique_names(runs: Sequence[RunRecord]) -> list[str]:
    """The folders' names, with as much of the path before them as tells them apart."""
    depth = 1
    parts = [run.folder.resolve().parts for run in runs]
    while depth < max(map(len, parts)) and len({path[-depth:] for path in parts}) < len({*parts}):
        depth += 1
    return ["/".join(path[-depth:]) for path in parts]
