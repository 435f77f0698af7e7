"""Reads a trace back: its slices by track, in seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class Slice(NamedTuple):
    """A piece of a track; times in seconds since the trace began."""

    group: str
    track: str
    name: str
    category: str
    began: float
    ended: float
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class TraceFile:
    """All slices, by the time they began, outer ones before inner ones."""

    slices: Sequence[Slice]
    notes: Sequence[str] = field(default=())

    def of(self, category: str) -> list[Slice]:
        return [one for one in self.slices if one.category == category]


def read_events(path: Path) -> list[dict[str, Any]]:
    """The trace's events. The closing bracket, and the rest of a line that a kill has cut off, may be missing.

    Raises ValueError for a file that is no trace.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        events = json.loads(text)
    except json.JSONDecodeError:
        whole = text.rstrip().rstrip(",")
        try:
            events = json.loads(f"{whole}\n]")
        except json.JSONDecodeError:
            lines = whole.rpartition("\n")[0].rstrip().rstrip(",")  # every line is an event
            events = json.loads(f"{lines}\n]")
    if not isinstance(events, list):
        raise ValueError(f"{path} is no trace in the array form of the Chrome trace format")
    return events


def read_trace(path: Path) -> TraceFile | None:
    """The slices of a trace; None where it cannot be read, or holds none."""
    try:
        events = read_events(path)
    except (OSError, ValueError):
        return None
    groups: dict[int, str] = {}
    tracks: dict[tuple[int, int], str] = {}
    for event in events:
        if event.get("ph") == "M" and event["name"] == "process_name":
            groups[event["pid"]] = event["args"]["name"]
        elif event.get("ph") == "M" and event["name"] == "thread_name":
            tracks[event["pid"], event["tid"]] = event["args"]["name"]
    slices = [
        Slice(
            groups.get(event["pid"], ""),
            tracks.get((event["pid"], event["tid"]), ""),
            event["name"],
            event.get("cat", ""),
            event["ts"] / 1e6,
            (event["ts"] + event["dur"]) / 1e6,
            event.get("args", {}),
        )
        for event in events
        if event.get("ph") == "X"
    ]
    slices.sort(key=lambda one: (one.began, -one.ended))
    notes = [event["name"] for event in events if event.get("ph") == "i" and event["ts"] > 0]
    return TraceFile(slices, notes) if slices else None
