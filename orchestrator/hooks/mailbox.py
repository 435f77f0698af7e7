"""What happens to an event on its way to one hook: all decisions, and nothing that waits."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from orchestrator.hooks.hook import EPOCH_EVENTS, Every, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.hooks.hook import Overflow, StateUpdate
    from state.trainer_state import TrainerState


@dataclass(slots=True, eq=False)
class Occurrence:
    """One event of the run, shared by all hooks it is delivered to."""

    number: int
    event: str
    state: TrainerState
    outcomes: dict[str, Outcome] = field(default_factory=dict[str, Outcome])
    updates: dict[str, StateUpdate] = field(default_factory=dict[str, "StateUpdate"])
    waiting: set[str] = field(default_factory=set[str])
    """Hooks that will handle it and have not yet."""

    def settle(self, hook: str, outcome: Outcome) -> None:
        self.outcomes[hook] = outcome
        self.waiting.discard(hook)


@dataclass(frozen=True, slots=True)
class Offer:
    """What became of an offered event. `displaced` are those that gave way to it."""

    verdict: Literal["accepted", "dropped", "full", "error"]
    displaced: tuple[Occurrence, ...] = ()


class Mailbox:
    """The events that wait for one hook, at most `max_lag`; lifecycle events are never lost and never displaced."""

    def __init__(self, overflow: Overflow, max_lag: int) -> None:
        self.overflow = overflow
        self.max_lag = max_lag
        self._waiting: deque[Occurrence] = deque()
        self.closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._waiting)}/{self.max_lag}"
        return f"<Mailbox {self.overflow}: {state}>"

    def offer(self, occurrence: Occurrence) -> Offer:
        """Put an event in, or say why not: "full" means that the caller waits for room and offers it again."""
        if self.closed:
            return Offer("dropped")
        must_arrive = occurrence.event not in EPOCH_EVENTS
        if len(self._waiting) < self.max_lag:
            self._waiting.append(occurrence)
            return Offer("accepted")
        if self.overflow == "coalesce" or (must_arrive and self.overflow == "drop"):
            # The newest says it all: waiting events of the same kind give way, or else the oldest that may.
            displaced = [waiting for waiting in self._waiting if waiting.event == occurrence.event and not must_arrive]
            if not displaced:
                displaced = [waiting for waiting in self._waiting if waiting.event in EPOCH_EVENTS][:1]
            for waiting in displaced:
                self._waiting.remove(waiting)
            self._waiting.append(occurrence)
            return Offer("accepted", tuple(displaced))
        if self.overflow == "drop":
            return Offer("dropped")
        if self.overflow == "error" and not must_arrive:
            return Offer("error")
        return Offer("full")

    def take(self) -> Occurrence | None:
        """The event that has waited longest."""
        return self._waiting.popleft() if self._waiting else None

    def close(self) -> tuple[Occurrence, ...]:
        """Accept nothing further; returns what was still waiting."""
        self.closed = True
        rest = tuple(self._waiting)
        self._waiting.clear()
        return rest


class Pace:
    """Decides which of a hook's epoch events are due, by its `every`."""

    def __init__(self, every: int | Every, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = Every(epochs=every) if isinstance(every, int) else every
        self._clock = clock
        self._last: dict[str, float] = {}

    def due(self, event: str, state: TrainerState) -> bool:
        """Whether to deliver `event` now; if so, the next distance is counted from here."""
        if event not in EPOCH_EVENTS:
            return True
        if self._every.epochs is not None:
            # The events of one epoch belong together: epochs count from 1, and on_epoch_end has counted already.
            epoch = state.epoch if event == "on_epoch_end" else state.epoch + 1
            return epoch % self._every.epochs == 0
        if self._every.agent_steps is not None:
            position, distance = float(state.agent_step), float(self._every.agent_steps)
            last = self._last.get(event, 0.0)
        else:
            position, distance = self._clock(), self._every.seconds or 0.0
            last = self._last.setdefault(event, position)
        if position - last < distance:
            return False
        self._last[event] = position
        return True
