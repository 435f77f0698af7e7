"""What a sink is, and how one is kept from harming the run or other sinks."""

from __future__ import annotations

import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from orchestrator.config.error import shown
from state.error import OrchestratorError

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("orchestrator.metrics")

Record: TypeAlias = Mapping[str, float | None]
"""Metrics of one epoch by name (see docs/metrics.md); None where a value is not known or not finite."""

WAITING = 1000
"""Records that may wait for a slow sink; those beyond are lost to it."""


class MissingExtra(OrchestratorError, ImportError):
    """A sink needs a package that is not installed; the message names the extra that brings it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a sink can know of the run whose records it is about to get."""

    run_id: str
    run_dir: Path | None = None
    """The run's folder; None if it has none."""
    epoch: int = 0
    """Epochs completed before the first record: above 0 where a run is resumed."""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    """The run's settings by dotted path, as far as they are known."""
    stop: Callable[[str], None] = lambda reason: None
    """Has the run finish its epoch and end, for a reason; can be called from any thread."""


class Sink(Protocol):
    """Somewhere to write records to. Plain functions that may wait: all are called in one thread of the sink's own.

    `write` is called once per epoch, in order, and should leave the record where a kill of the process does not
    lose it. A sink that raises is reported once and still gets records; one that could not be opened gets none.
    """

    def open(self, run: RunInfo) -> None:
        """Once, before the first record."""
        ...

    def write(self, record: Record) -> None:
        """One epoch's record."""
        ...

    def close(self) -> None:
        """Once, after the last record; not called if `open` has failed."""
        ...


@runtime_checkable
class VideoSink(Sink, Protocol):
    """A sink that also takes the episodes that evaluations have recorded."""

    def write_videos(self, record: Record, videos: Mapping[str, str]) -> None:
        """Paths of the files by task; of the record `epoch` and `agent_step`, when they became known."""
        ...


class GuardedSink:
    """A sink whose errors are reported, the first with its traceback, and counted."""

    def __init__(self, sink: Sink) -> None:
        self.name = type(sink).__name__
        self.lost = 0
        """Records that it did not take."""
        self.is_open = False
        self._sink = sink
        self._reported = False

    def open(self, run: RunInfo) -> None:
        self.is_open = self._attempt("be opened, so it gets no records", lambda: self._sink.open(run))

    def write(self, record: Record) -> None:
        if self.is_open and not self._attempt("write a record", lambda: self._sink.write(record)):
            self.lost += 1

    def write_videos(self, record: Record, videos: Mapping[str, str]) -> None:
        sink = self._sink
        if self.is_open and isinstance(sink, VideoSink):
            self._attempt("take videos", lambda: sink.write_videos(record, videos))

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._attempt("be closed", self._sink.close)
            if self.lost:
                _log.error("the metrics sink %s has lost %d records", self.name, self.lost)

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except BaseException as error:  # a SystemExit, too, is the sink's own: nobody cancels its thread
            if not self._reported:
                self._reported = True
                _log.error("the metrics sink %s failed to %s; the run continues", self.name, what, exc_info=error)
            return False
        return True


class ThreadedSink:
    """A guarded sink in its own thread: none of its methods waits for the sink, whatever the sink does.

    `after` is the thread of an earlier run that is not done with the same sink: this one begins when that has ended.
    """

    def __init__(self, sink: Sink, after: ThreadedSink | None = None) -> None:
        self.sink = sink
        self._guarded = GuardedSink(sink)
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._after = after

    @property
    def name(self) -> str:
        return self._guarded.name

    def open(self, run: RunInfo) -> None:
        # A daemon: a sink that hangs does not keep the program from ending.
        self._thread = threading.Thread(
            target=self._serve, args=[run], name=f"metrics sink {self._guarded.name}", daemon=True
        )
        self._thread.start()

    def write(self, record: Record) -> None:
        if self._work.qsize() < WAITING:
            self._work.put(partial(self._guarded.write, record))
        else:
            self._guarded.lost += 1

    def write_videos(self, record: Record, videos: Mapping[str, str]) -> None:
        self._work.put(partial(self._guarded.write_videos, record, videos))

    def close(self) -> None:
        """Let it write what waits and then close, after which it is `done`."""
        self._work.put(None)

    @property
    def done(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def _serve(self, run: RunInfo) -> None:
        if self._after is not None and self._after._thread is not None:
            self._after._thread.join()
        self._after = None
        self._guarded.open(run)
        while (action := self._work.get()) is not None:
            action()
        self._guarded.close()


def check_sink(sink: object) -> None:
    """Raises TypeError, naming what is missing, for what is no sink."""
    if isinstance(sink, type):
        raise TypeError(f"{sink.__name__} is a class of metrics sinks; give an instance of it")
    missing = [name for name in ("open", "write", "close") if not callable(getattr(sink, name, None))]
    if missing:
        raise TypeError(f"{shown(sink)} is no sink of metrics: it has no {', no '.join(missing)}")


def require(package: str, extra: str) -> None:
    """Raises MissingExtra, naming the extra to install, where a package is not there."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(
            f"the package {package} is not installed: pip install 'async-rl-orchestrator[{extra}]'", name=package
        )
