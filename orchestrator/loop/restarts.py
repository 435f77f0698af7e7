"""How often a worker that dies may be replaced."""

from __future__ import annotations

import time
from collections import deque

MAX_RESTARTS, RESTART_SECONDS = 3, 3600.0
"""Times that one worker is replaced within so many seconds before its death ends the run."""


class Restarts:
    """The deaths of one worker."""

    def __init__(self) -> None:
        self.total = 0
        """Times that it died."""
        self._recent: deque[float] = deque()
        """When it died (`time.monotonic()`), as far back as counts."""

    @property
    def recent(self) -> int:
        """Times that it died within `RESTART_SECONDS` before the last time."""
        return len(self._recent)

    def died(self) -> bool:
        """Count a death. Returns whether the worker may be replaced."""
        now = time.monotonic()
        self.total += 1
        self._recent.append(now)
        while self._recent[0] < now - RESTART_SECONDS:
            self._recent.popleft()
        return len(self._recent) <= MAX_RESTARTS

    def __str__(self) -> str:
        return f"starting it again ({self.recent} of {MAX_RESTARTS}) within an hour"
