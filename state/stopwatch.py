"""Where the time goes: named timers, laps, counters for rates, and a frozen reading of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from state.error import OrchestratorError
from state.frozen_mapping import FrozenMapping
from state.saved_values import SavedValues

_NOTHING: FrozenMapping[str, float] = FrozenMapping()
_MAPPINGS = ("timer_seconds", "counts", "lap_timer_seconds", "lap_counts")


class StopwatchError(OrchestratorError, RuntimeError):
    """A timer was used out of order; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopwatchReading:
    """What a stopwatch showed at one moment. All times are in seconds, the mappings are by name.

    "Overall" is since the start of the run, the time before a resumption included. The lap is the last one that
    was closed; its mappings have an entry for every name that was used before it was closed, though not before the
    last resumption: a run may resume with fewer things to measure.
    """

    seconds: float = 0.0
    """Overall time; the time between a save and the load of it does not count."""
    timer_seconds: Mapping[str, float] = _NOTHING
    """Overall time of each timer, with the running time of those that run."""
    counts: Mapping[str, float] = _NOTHING
    """Overall count of each counter."""
    laps: int = 0
    """Laps closed."""
    lap_seconds: float = 0.0
    """Duration of the last lap."""
    lap_timer_seconds: Mapping[str, float] = _NOTHING
    """Time of each timer in the last lap."""
    lap_counts: Mapping[str, float] = _NOTHING
    """Count of each counter in the last lap."""

    def __post_init__(self) -> None:
        for name in _MAPPINGS:
            if type(mapping := getattr(self, name)) is not FrozenMapping:
                object.__setattr__(self, name, FrozenMapping(mapping))

    def rate(self, name: str) -> float | None:
        """Counts per second of a counter, overall; None while it has not counted or no time has passed."""
        return _per_second(self.counts.get(name), self.seconds)

    def lap_rate(self, name: str) -> float | None:
        """Counts per second of a counter in the last lap; None while it is not known."""
        return _per_second(self.lap_counts.get(name), self.lap_seconds)

    def remaining_seconds(self, progress: float, total: float) -> float | None:
        """Time until `progress` (in any unit, overall) reaches `total` at the overall pace; None while unknown."""
        if progress >= total:
            return 0.0
        return self.seconds * (total - progress) / progress if progress > 0 and self.seconds > 0 else None

    def to_dict(self) -> dict[str, object]:
        """What `from_dict` and `Stopwatch.load_state_dict` read, made of JSON's types."""
        return {
            "seconds": self.seconds,
            "timer_seconds": dict(self.timer_seconds),
            "counts": dict(self.counts),
            "laps": self.laps,
            "lap_seconds": self.lap_seconds,
            "lap_timer_seconds": dict(self.lap_timer_seconds),
            "lap_counts": dict(self.lap_counts),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> StopwatchReading:
        """Read what `to_dict` wrote. Raises `ValueError` naming the entry that is missing or wrong."""
        saved = SavedValues(data, "stopwatch")
        return cls(
            seconds=saved.number("seconds"),
            timer_seconds=saved.numbers("timer_seconds"),
            counts=saved.numbers("counts"),
            laps=saved.integer("laps"),
            lap_seconds=saved.number("lap_seconds"),
            lap_timer_seconds=saved.numbers("lap_timer_seconds"),
            lap_counts=saved.numbers("lap_counts"),
        )


class Stopwatch:
    """Measures a run from the moment it is made; has one owner, and is not for several threads at once.

    `with stopwatch("collect"): ...` or `start` and `stop` time a piece of work; timers of different names may
    overlap in any way. `clock` gives seconds from any origin and must not go backwards; the default is one clock for
    all processes of a machine.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._restore(StopwatchReading())

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """A context in which the timer runs. Entering raises `StopwatchError` if it runs already."""
        return _Timing(self, name)

    def start(self, name: str) -> None:
        """Start a timer. Raises `StopwatchError` if it runs already."""
        now = self._clock()
        if name in self._running:
            raise StopwatchError(f"timer {name!r} was started, but it is running already; stop it first")
        self._timers.setdefault(name, _Tally())
        self._running[name] = now

    def stop(self, name: str) -> None:
        """Stop a timer. Raises `StopwatchError` if it does not run."""
        now = self._clock()
        try:
            started = self._running.pop(name)
        except KeyError:
            running = ", ".join(map(repr, self._running)) or "none"
            raise StopwatchError(f"timer {name!r} was stopped, but it is not running; running: {running}") from None
        self._timers[name].add(now - started)

    def add(self, name: str, seconds: float) -> None:
        """Add time that was measured elsewhere, as in another process, to a timer.

        Raises `ValueError` if `seconds` is negative or not finite.
        """
        if not 0 <= seconds < math.inf:
            raise _unfit(seconds, f"seconds added to timer {name!r}")
        tally = self._timers.get(name)
        if tally is None:
            tally = self._timers[name] = _Tally()
        tally.add(seconds)

    def rate(self, name: str, count: float) -> None:
        """Add to a counter, such as agent steps, of which readings tell the rate per second.

        Raises `ValueError` if `count` is negative or not finite.
        """
        if not 0 <= count < math.inf:
            raise _unfit(count, f"count added to counter {name!r}")
        self._counters.setdefault(name, _Tally()).add(count)

    @property
    def lap_started(self) -> float:
        """When the open lap began, on the stopwatch's clock."""
        return self._lap_started

    def lap(self, now: float | None = None) -> StopwatchReading:
        """Close the lap of all timers and counters, begin the next, and read.

        A running timer keeps running; its time until now belongs to the closed lap. `now` is what the clock showed a
        moment ago, for callers that have read it already.
        """
        now = self._clock() if now is None else now
        for name, started in self._running.items():
            self._timers[name].add(now - started)
            self._running[name] = now
        self._laps += 1
        self._lap_seconds = now - self._lap_started
        self._lap_started = now
        self._lap_timers = _closed(self._timers)
        self._lap_counts = _closed(self._counters)
        return self._read(now)

    def reading(self) -> StopwatchReading:
        """What the stopwatch shows now, as an immutable value."""
        return self._read(self._clock())

    def state_dict(self) -> dict[str, object]:
        """What `load_state_dict` reads, made of JSON's types: the reading's `to_dict`."""
        return self.reading().to_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Show what was saved, and continue from there.

        The lap that was open when it was saved is not continued: its time is in the overall times only. Raises
        `StopwatchError` if a timer runs, and `ValueError` naming an entry of `state` that is missing or wrong.
        """
        if self._running:
            running = ", ".join(map(repr, self._running))
            raise StopwatchError(f"a stopwatch can't be loaded while timers run; running: {running}")
        self._restore(StopwatchReading.from_dict(state))

    def __repr__(self) -> str:
        running = ", ".join(self._running) or "none"
        return f"<Stopwatch {self.reading().seconds:.3f} s, {self._laps} laps, running: {running}>"

    def _restore(self, reading: StopwatchReading) -> None:
        now = self._clock()
        self._started = now - reading.seconds
        self._lap_started = now
        self._running: dict[str, float] = {}
        self._timers = {name: _Tally(seconds) for name, seconds in reading.timer_seconds.items()}
        self._counters = {name: _Tally(count) for name, count in reading.counts.items()}
        self._laps = reading.laps
        self._lap_seconds = reading.lap_seconds
        self._lap_timers = reading.lap_timer_seconds
        self._lap_counts = reading.lap_counts

    def _read(self, now: float) -> StopwatchReading:
        timers = {name: tally.overall for name, tally in self._timers.items()}
        for name, started in self._running.items():
            timers[name] += now - started
        return StopwatchReading(
            seconds=now - self._started,
            timer_seconds=timers,
            counts={name: tally.overall for name, tally in self._counters.items()},
            laps=self._laps,
            lap_seconds=self._lap_seconds,
            lap_timer_seconds=self._lap_timers,
            lap_counts=self._lap_counts,
        )


def _closed(tallies: Mapping[str, _Tally]) -> FrozenMapping[str, float]:
    """What the lap has of each that is in use, which begins its next."""
    return FrozenMapping({name: tally.close_lap() for name, tally in tallies.items() if tally.used})


class _Tally:
    """A sum overall and in the open lap; `used` once something was added since it was made."""

    __slots__ = ("lap", "overall", "used")

    def __init__(self, overall: float = 0.0) -> None:
        self.overall = overall
        self.lap = 0.0
        self.used = False

    def add(self, amount: float) -> None:
        self.used = True
        self.overall += amount
        self.lap += amount

    def close_lap(self) -> float:
        lap, self.lap = self.lap, 0.0
        return lap


class _Timing:
    """One use of a timer as a context."""

    __slots__ = ("_name", "_stopwatch")

    def __init__(self, stopwatch: Stopwatch, name: str) -> None:
        self._stopwatch = stopwatch
        self._name = name

    def __enter__(self) -> None:
        self._stopwatch.start(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopwatch.stop(self._name)


def _unfit(amount: float, what: str) -> ValueError:
    return ValueError(f"{what}: {amount!r}, expected a finite number of at least 0")


def _per_second(count: float | None, seconds: float) -> float | None:
    return count / seconds if count is not None and seconds > 0 else None
