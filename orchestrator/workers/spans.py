"""What a worker did when, recorded where a run is traced, and nothing otherwise."""

from __future__ import annotations

import time
from typing import Any, NamedTuple, TypeVar

_Report = TypeVar("_Report", bound=tuple[Any, ...])


class Span(NamedTuple):
    """A piece of work; times are `time.monotonic()`. On an accelerator they are those of issuing the work to it."""

    name: str
    began: float
    ended: float
    update_epoch: int | None = None
    mb_idx: int | None = None


class Spans:
    """Pieces of work that follow each other. Costs a method call each where it is off."""

    def __init__(self, on: bool) -> None:
        self._on = on
        self._since = time.monotonic()
        self.recorded: list[Span] = []

    def end(self, name: str, update_epoch: int | None = None, mb_idx: int | None = None) -> None:
        """The activity since the last span is over, and was this."""
        if self._on:
            now = time.monotonic()
            self.recorded.append(Span(name, self._since, now, update_epoch, mb_idx))
            self._since = now


def on_clock(report: _Report, ahead: float) -> _Report:
    """A report with `began`, `ended` and perhaps `spans`, from a clock that is so many seconds ahead."""
    if not ahead:
        return report
    named: Any = report
    times: dict[str, Any] = {"began": named.began - ahead, "ended": named.ended - ahead}
    if hasattr(named, "spans"):
        times["spans"] = [one._replace(began=one.began - ahead, ended=one.ended - ahead) for one in named.spans]
    return named._replace(**times)
