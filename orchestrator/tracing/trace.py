"""A run as a Chrome trace: what happened when, in all processes, on one clock. Perfetto and chrome://tracing show it.

Recording appends a tuple; making text of what has been recorded is for a thread. The text is the format's array
form, whose closing bracket may be missing, so that the file is valid whenever the run ends.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from state.policy_point import PolicyPoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from orchestrator.collection.collector import CollectReport
    from orchestrator.learning.messages import LearnReport

LOOP, WORKERS, HOOKS = "training loop", "workers", "hooks"
_PROCESSES = (LOOP, WORKERS, HOOKS)
BLOCK = 8
"""Epochs that are recorded, or left out, in a row: enough to see how they overlap."""
_NOTES = 1_000
"""Bytes kept free for what says that the trace is full."""
_MAX_WAITING = 50_000
"""Events kept while nobody writes them: a disk that hangs must not take the memory."""
_PUBLICATIONS = "publications"


class Track(NamedTuple):
    """A row of the display, in one of the groups above."""

    group: str
    name: str


class HookEvent(Protocol):
    """An event of the run that a hook is at work on."""

    @property
    def number(self) -> int: ...
    @property
    def event(self) -> str: ...
    @property
    def epoch(self) -> int: ...


class Event(NamedTuple):
    """Something recorded. Times are `time.monotonic()`; `flow` joins the ends of an arrow, of phases "s" and "f"."""

    phase: Literal["X", "i", "s", "f"]
    name: str
    category: str
    track: Track
    began: float
    ended: float
    arguments: Mapping[str, Any]
    flow: str = ""


class Trace:
    """Records a run, up to about `max_bytes` of text.

    The first epochs are recorded without gaps. When half the space is used, only every fourth block of epochs is
    recorded, when half of the rest is used every sixteenth, and so on: each half lasts for twice as many epochs as the
    one before, so that the end of a long run is there, too. Notes in the trace say where.
    """

    def __init__(self, max_bytes: int = 20_000_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._origin = self._clock()
        self._started = datetime.now(UTC)
        self._events: list[Event] = []
        self._tracks: dict[Track, tuple[int, int]] = {}
        self._published: dict[PolicyPoint, float] = {}
        self._bytes = 0
        self._level = 1
        self._stride = 1
        self._recording = True
        self.full = False
        """Whether nothing more is recorded."""

    def reset(self) -> None:
        """Forget a run, for the next one."""
        self._begin()

    # What is recorded. Epochs are counted from 0, as in the events of the loop; readers count from 1.

    def activity(self, lane: Literal["collect", "learn"], activity: str, began: float, ended: float) -> None:
        """What a task of the loop did."""
        name = lane if activity == "work" else f"{activity}_{lane}"
        self._slice(Track(LOOP, f"{lane} task"), name, "task", began, ended)

    def epoch(self, epoch: int, began: float, ended: float) -> None:
        """An epoch is over: the time since the end of the one before."""
        self._slice(Track(LOOP, "epochs"), f"epoch {epoch + 1}", "epoch", began, ended, {"epoch": epoch + 1})
        self._recording = not self.full and (epoch + 1) // BLOCK % self._stride == 0

    def collected(self, epoch: int, behavior: PolicyPoint, reports: Sequence[CollectReport]) -> None:
        """A rollout of all collectors."""
        published = self._published.get(behavior)
        for index, report in enumerate(reports):
            track = Track(WORKERS, f"collector {index}")
            arguments = {"epoch": epoch + 1, "policy_version": behavior.version, "agent_steps": report.agent_steps}
            self._slice(track, f"collect {epoch + 1}", "collect", report.began, report.ended, arguments)
            if published is not None:
                arrow = f"policy {behavior} to epoch {epoch + 1}, collector {index}"
                self._arrow("s", arrow, Track(WORKERS, _PUBLICATIONS), published)
                self._arrow("f", arrow, track, report.began)
        for old in [known for known in self._published if known < behavior]:
            del self._published[old]

    def learned(self, epoch: int, version: int, report: LearnReport) -> None:
        """An epoch of learning, and the publication of what came of it."""
        cells = (report, *report.other_cells)
        for cell, one in enumerate(cells):
            self._learned(Track(WORKERS, "learner" if len(cells) == 1 else f"learner {cell}"), epoch, one)
        for span in report.spans:
            if span.name == "publish":
                self.published(PolicyPoint(version), span.began, span.ended)

    def _learned(self, track: Track, epoch: int, report: LearnReport) -> None:
        arguments = {"epoch": epoch + 1, "minibatches": report.minibatches, "update_epochs": report.update_epochs}
        self._slice(track, f"learn {epoch + 1}", "learn", report.began, report.ended, arguments)
        for update_epoch, group in groupby(report.spans, key=lambda span: span.update_epoch):
            spans = list(group)
            if update_epoch is not None:
                name = f"update epoch {update_epoch + 1}"
                self._slice(track, name, "update epoch", spans[0].began, spans[-1].ended)
            for span in spans:
                label = span.name if span.mb_idx is None else f"{span.name} {span.mb_idx + 1}"
                self._slice(track, label, span.name, span.began, span.ended)

    def published(self, point: PolicyPoint, began: float, ended: float) -> None:
        """The learner has published a policy."""
        track = Track(WORKERS, _PUBLICATIONS)
        self._slice(track, f"policy {point}", "publish", began, ended, {"policy_version": point.version})
        if self._recording:
            self._published[point] = (began + ended) / 2

    def worker_call(self, worker: str, method: str, began: float, ended: float) -> None:
        """A request of a hook to the hook's own worker, such as an evaluation."""
        self._slice(Track(WORKERS, worker), method, "worker", began, ended)

    def hook(
        self, name: str, kind: Literal["work", "block"], began: float, ended: float, occurrence: HookEvent | None
    ) -> None:
        """An attempt of a hook at an event, or a time that the training waited for the hook."""
        if kind == "block":
            self._slice(Track(HOOKS, f"{name}: the training waits"), f"wait for {name}", "block", began, ended)
        elif occurrence is not None:
            arguments = {"epoch": occurrence.epoch, "event_number": occurrence.number}
            self._slice(Track(HOOKS, name), occurrence.event, "hook", began, ended, arguments)

    def _slice(
        self,
        track: Track,
        name: str,
        category: str,
        began: float,
        ended: float,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._add(Event("X", name, category, track, began, ended, arguments or {}))

    def _arrow(self, phase: Literal["s", "f"], flow: str, track: Track, at: float) -> None:
        self._add(Event(phase, "used by", "publish", track, at, at, {}, flow))

    def _add(self, event: Event) -> None:
        if self._recording and len(self._events) < _MAX_WAITING:
            self._events.append(event)

    # What becomes of it.

    def take(self) -> list[Event]:
        """What has been recorded since the last time."""
        events, self._events = self._events, []
        return events

    def text(self, events: Sequence[Event]) -> str:
        """The text for these, to be appended to the file. One thread at a time, which need not be the recording one."""
        parts: list[str] = []
        if not self._bytes:
            parts += self._lines(self._header())
        for event in events:
            if self.full:
                break
            parts += self._lines(self._records(event))
            self._economize(event.ended, parts)
        return "".join(parts)

    END = "\n]\n"
    """What closes the text. It may be missing."""

    def _lines(self, records: Iterator[dict[str, Any]]) -> Iterator[str]:
        for record in records:
            line = f"{',' if self._bytes else '['}\n{json.dumps(record, separators=(',', ':'))}"
            self._bytes += len(line)
            yield line

    def _header(self) -> Iterator[dict[str, Any]]:
        for number, name in enumerate(_PROCESSES, 1):
            yield {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": name}}
            yield {"ph": "M", "name": "process_sort_index", "pid": number, "tid": 0, "args": {"sort_index": number}}
        clock = {"monotonic_seconds": self._origin, "wall_clock": self._started.isoformat()}
        yield {"ph": "i", "s": "g", "name": "begin of the trace", "ts": 0, "pid": 1, "tid": 0, "args": clock}

    def _records(self, event: Event) -> Iterator[dict[str, Any]]:
        known = self._tracks.get(event.track)
        if known is None:
            pid = _PROCESSES.index(event.track.group) + 1
            known = self._tracks[event.track] = (pid, 1 + sum(pid == other for other, _ in self._tracks.values()))
            place = {"pid": pid, "tid": known[1]}
            yield {"ph": "M", "name": "thread_name", **place, "args": {"name": event.track.name}}
            yield {"ph": "M", "name": "thread_sort_index", **place, "args": {"sort_index": known[1]}}
        pid, tid = known
        began = self._microseconds(event.began)
        record: dict[str, Any] = {"ph": event.phase, "name": event.name, "cat": event.category, "ts": began}
        record |= {"pid": pid, "tid": tid}
        if event.phase == "X":
            record["dur"] = round(self._microseconds(event.ended) - began, 3)
        else:
            record["id"] = event.flow
        if event.phase == "f":
            record["bp"] = "e"
        if event.arguments:
            record["args"] = event.arguments
        yield record

    def _microseconds(self, moment: float) -> float:
        return round((moment - self._origin) * 1e6, 3)

    def _economize(self, now: float, parts: list[str]) -> None:
        """Record less as space becomes scarce."""
        if self._bytes > self._max_bytes - _NOTES:
            self.full = True
            self._recording = False
            parts += self._lines(self._note(now, "the trace is full: nothing is recorded from here on"))
        elif self._bytes > self._max_bytes * (1 - 0.5**self._level):
            self._level += 1
            self._stride *= 4
            text = f"the trace becomes large: from here on {BLOCK} of every {BLOCK * self._stride} epochs are recorded"
            parts += self._lines(self._note(now, text))

    def _note(self, now: float, text: str) -> Iterator[dict[str, Any]]:
        yield {"ph": "i", "s": "g", "name": text, "ts": self._microseconds(now), "pid": 1, "tid": 0}
