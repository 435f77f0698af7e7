"""Counts what happens to one hook's events, and measures what its work takes."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal, Protocol

from orchestrator.hooks.statistics import HookStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.hooks.mailbox import Occurrence


class Observer(Protocol):
    """Gets every attempt of a hook at an event ("work"), and every time that senders have waited for it."""

    def __call__(
        self, hook: str, kind: Literal["work", "block"], began: float, ended: float, occurrence: Occurrence | None, /
    ) -> None: ...


class Meter:
    """Counts what happens to one hook's events, and measures how long it is busy and holds up its senders.

    It is written in the event loop's thread and read from any: whoever changes it, or what belongs to it, holds `lock`.
    (A reentrant one: a signal handler may ask for statistics.)
    """

    __slots__ = (
        "_blocked_seconds",
        "_blocked_senders",
        "_blocked_since",
        "_busy_seconds",
        "_busy_since",
        "_doing",
        "abandoned",
        "coalesced",
        "delivered",
        "dropped",
        "failed",
        "handled",
        "lock",
        "observe",
        "retried",
    )

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.delivered = self.handled = self.failed = self.coalesced = self.abandoned = self.dropped = self.retried = 0
        self._busy_seconds = self._blocked_seconds = self._blocked_since = 0.0
        self._busy_since: float | None = None
        self._blocked_senders = 0
        self._doing: Occurrence | None = None
        self.observe: Callable[[Literal["work", "block"], float, float, Occurrence | None], None] | None = None
        """An `Observer` that knows the hook."""

    def begin_work(self, doing: Occurrence | None = None) -> None:
        self._doing = doing
        with self.lock:
            self._busy_since = time.monotonic()

    def end_work(self) -> None:
        since, doing = self._busy_since, self._doing
        if since is not None:
            with self.lock:
                now = time.monotonic()
                self._busy_seconds += now - since
                self._busy_since = None
            self._doing = None
            if self.observe is not None:
                self.observe("work", since, now, doing)

    def begin_block(self) -> None:
        """A sender begins to wait for room. Senders that wait at the same time count once."""
        with self.lock:
            if not self._blocked_senders:
                self._blocked_since = time.monotonic()
            self._blocked_senders += 1

    def end_block(self) -> None:
        with self.lock:
            blocked_seconds = self.blocked_seconds
            self._blocked_senders -= 1
            if self._blocked_senders:
                return
            self._blocked_seconds = blocked_seconds
        if self.observe is not None:
            self.observe("block", self._blocked_since, time.monotonic(), None)

    @property
    def busy_seconds(self) -> float:
        with self.lock:
            since = self._busy_since
            return self._busy_seconds + (0.0 if since is None else time.monotonic() - since)

    @property
    def blocked_seconds(self) -> float:
        with self.lock:
            return self._blocked_seconds + (time.monotonic() - self._blocked_since if self._blocked_senders else 0.0)

    def read(self, *, state: str, queue: int, lag: int) -> HookStatistics:
        return HookStatistics(
            state=state,
            queue=queue,
            lag=lag,
            delivered=self.delivered,
            handled=self.handled,
            failed=self.failed,
            coalesced=self.coalesced,
            abandoned=self.abandoned,
            dropped=self.dropped,
            retried=self.retried,
            busy_seconds=self.busy_seconds,
            blocked_seconds=self.blocked_seconds,
        )
