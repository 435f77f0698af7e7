"""What the training loop's two tasks do at every moment, and what of it an epoch's duration depends on.

Each task is in exactly one activity at a time: at `work` (its worker collects or learns), in `wait` for the other task,
at `hooks` (events are handed out; a hook that blocks is waited for) or at anything else of the `host` (messages,
slots). So the activities of a task add up to the epoch. All times are `time.monotonic()`, one clock for all processes
of a machine.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, TypeAlias

from state.policy_point import PolicyPoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.collection.collector import CollectReport
    from orchestrator.learning.messages import EarlyReport, LearnReport
    from orchestrator.tracing.trace import Trace
    from state.stopwatch import Stopwatch, StopwatchReading

Activity: TypeAlias = Literal["work", "wait", "hooks", "host"]
_Piece: TypeAlias = tuple[Activity, float, float]


class Lane:
    """What one task does. Made by `Timeline`."""

    def __init__(self, name: Literal["collect", "learn"], timeline: Timeline, began: float) -> None:
        self.name: Literal["collect", "learn"] = name
        self._timeline = timeline
        self._activity: Activity = "host"
        self._since = self._accounted = began
        self.pieces: list[_Piece] = []
        """Of the open lap, in order and without gaps."""
        self._timers = {kind: f"{kind}_{name}" for kind in ("wait", "hooks", "host")} | {"work": name}

    def now(self, activity: Activity) -> None:
        """From now on the task does this."""
        if activity != self._activity:
            self._switch(activity, self._timeline.clock())

    def worked(self, began: float, ended: float) -> None:
        """The worker's own times of the work that it was asked for; what is around them were messages."""
        now = self._timeline.clock()
        began = min(max(began, self._since), now)
        ended = min(max(began, ended), now)
        # Where a lap has been closed since it was asked for, that has counted the time until then as work.
        self._activity = "host"
        self._switch("work", began)
        self._switch("host", ended)

    def account(self, now: float) -> None:
        """Count the present activity until now; work without a report yet counts from when it was asked for."""
        if now > self._accounted:
            self.pieces.append((self._activity, self._accounted, now))
            self._timeline.stopwatch.add(self._timers[self._activity], now - self._accounted)
            self._accounted = now

    def _switch(self, activity: Activity, now: float) -> None:
        self.account(now)
        if self._timeline.trace is not None:
            self._timeline.trace.activity(self.name, self._activity, self._since, now)
        self._activity, self._since = activity, now


class Timeline:
    """Counts activities into the stopwatch, under these names (seconds of the lap):

    - `collect`, `wait_collect`, `hooks_collect`, `host_collect`: the collect task, adding up to the lap; `collect` is
      from the first collector's beginning to the last one's end;
    - `learn`, `wait_learn`, `hooks_learn`, `host_learn`: the learn task, in the same way;
    - `critical_learn`, `critical_collect`, `critical_hooks`, `critical_host`: the critical path, adding up to the lap:
      what the learn task does, and while it waits for experience, what the collect task does;
    - with several cells, `learn_cell_<n>`: what each computes in `learn`; `exchange`: what it takes to tell each other
      sums; `wait_cells`: what the fastest waits for the slowest;
    - `policy_lag`: from the publication of the policy that the epoch was collected with to the begin of that
      collection.
    """

    def __init__(
        self, stopwatch: Stopwatch, trace: Trace | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        # The stopwatch must be on the same clock.
        self.clock = clock
        self.trace = trace
        self.stopwatch = stopwatch
        self._lap_began = stopwatch.lap_started
        self.collecting = Lane("collect", self, self._lap_began)
        self.learning = Lane("learn", self, self._lap_began)
        self._published: dict[PolicyPoint, float] = {}
        self._lags: dict[int, float] = {}

    def published(self, point: PolicyPoint) -> None:
        """A policy is there that the learner did not report: the first."""
        self._published[point] = self.clock()

    def published_early(self, point: PolicyPoint, report: EarlyReport) -> None:
        """The learner has answered amid an epoch, and goes on with it."""
        self._published[point] = report.ended
        if self.trace is not None:
            self.trace.published(point, report.began, report.ended)

    def collected(self, epoch: int, behavior: PolicyPoint, reports: Sequence[CollectReport]) -> float:
        """The collectors have answered; how many seconds they have taken."""
        began, ended = min(report.began for report in reports), max(report.ended for report in reports)
        self.collecting.worked(began, ended)
        self._lags[epoch] = max(0.0, began - self._published.get(behavior, began))
        for old in [known for known in self._published if known < behavior]:
            del self._published[old]
        if self.trace is not None:
            self.trace.collected(epoch, behavior, reports)
        return ended - began

    def learned(self, epoch: int, version: int, report: LearnReport) -> None:
        """The learner has answered, and has published `version`."""
        self.learning.worked(report.began, report.ended)
        self._share_of_cells((report, *report.other_cells))
        self._published[PolicyPoint(version)] = report.ended
        if self.trace is not None:
            self.trace.learned(epoch, version, report)

    def _share_of_cells(self, reports: Sequence[LearnReport]) -> None:
        """The one that waits least for the others is the slowest: what it spends is what sending takes."""
        if len(reports) == 1:
            return
        exchanging = [report.exchange_seconds for report in reports]
        self.stopwatch.add("exchange", min(exchanging))
        self.stopwatch.add("wait_cells", max(exchanging) - min(exchanging))
        self.stopwatch.rate("exchange_bytes", sum(report.exchange_bytes for report in reports))
        for cell, report in enumerate(reports):
            self.stopwatch.add(f"learn_cell_{cell}", max(0.0, report.ended - report.began - report.exchange_seconds))

    def lap(self, epoch: int) -> StopwatchReading:
        """The epoch (counted from 0) is over: closes the stopwatch's lap."""
        now = self.clock()
        self.collecting.account(now)
        self.learning.account(now)
        for name, seconds in critical_path(self.learning.pieces, self.collecting.pieces).items():
            self.stopwatch.add(f"critical_{name}", seconds)
        self.stopwatch.add("policy_lag", self._lags.pop(epoch, 0.0))
        self.learning.pieces.clear()
        self.collecting.pieces.clear()
        if self.trace is not None:
            self.trace.epoch(epoch, self._lap_began, now)
        self._lap_began = now
        return self.stopwatch.lap(now)

    def end(self) -> None:
        """There is nothing left to do."""
        self.collecting.now("host")
        self.learning.now("host")


def critical_path(learning: Sequence[_Piece], collecting: Sequence[_Piece]) -> dict[str, float]:
    """Seconds by what the end of the epoch was waiting for: `learn`, `collect`, `hooks` or `host`.

    Both are pieces without gaps. An epoch ends when it has been learned from, so the path is along the learn task;
    where that one waits for experience, it is along the collect task.
    """
    seconds = {"learn": 0.0, "collect": 0.0, "hooks": 0.0, "host": 0.0}
    behind = iter(collecting)
    other = next(behind, None)
    for activity, began, ended in learning:
        if activity != "wait":
            seconds["learn" if activity == "work" else activity] += ended - began
            continue
        left = ended - began
        while other is not None and other[1] < ended:
            shared = min(ended, other[2]) - max(began, other[1])
            if shared > 0:
                # Both waiting: the moment in which one is being woken.
                kind = {"work": "collect", "wait": "host"}.get(other[0], other[0])
                seconds[kind] += shared
                left -= shared
            if other[2] > ended:
                break
            other = next(behind, None)
        seconds["host"] += max(0.0, left)
    return seconds
