"""How hooks keep up, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HookStatistics:
    """How a hook keeps up.

    delivered == handled + failed + coalesced + abandoned + queue + (1 while it is at work).
    """

    state: str
    queue: int
    """Events that wait."""
    lag: int
    """Epochs from the event that it is at to the newest of the run; 0 when it has nothing to do."""
    delivered: int
    """Events put into its mailbox."""
    handled: int
    failed: int
    """After the last attempt."""
    coalesced: int
    """Gave way to a newer event."""
    abandoned: int
    """Waiting or at work when the hook was ended."""
    dropped: int
    """Refused, because the mailbox was full."""
    retried: int
    busy_seconds: float
    """Time in callbacks, the present one included."""
    blocked_seconds: float
    """Time that the training waited for room in the mailbox: the exposed part of the hook's work."""

    @property
    def hidden_seconds(self) -> float:
        """Time in callbacks that cost the training nothing."""
        return max(0.0, self.busy_seconds - self.blocked_seconds)
