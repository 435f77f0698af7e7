"""What happens to an event on its way to one hook: all decisions are made here, and none of them waits."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.hooks.hook import EPOCH_EVENTS, Every, Outcome, epoch_of
from orchestrator.hooks.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from orchestrator.hooks.hook import Overflow
    from state.trainer_state import TrainerState


@dataclass(slots=True, eq=False)
class Occurrence:
    """One event of the run, shared by all hooks it is delivered to."""

    number: int
    event: str
    state: TrainerState
    expected: frozenset[str] = frozenset()
    """Names of the hooks it is offered to; each settles it exactly once."""
    outcomes: dict[str, Outcome] = field(default_factory=dict[str, Outcome])
    changes: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])
    """By hook, the fields of the state that it has returned."""
    news: Wakeup | None = None

    @property
    def epoch(self) -> int:
        """As `epoch_of`."""
        return epoch_of(self.event, self.state)

    def settle(self, hook: str, outcome: Outcome) -> None:
        """The hook is done with this event."""
        self.outcomes[hook] = outcome
        if self.news is not None:
            self.news.set()

    async def wait_for(self, hooks: Collection[str]) -> None:
        """Wait until the hooks are done with it, as far as it was offered to them."""
        while not all(name in self.outcomes or name not in self.expected for name in hooks):
            self.news = self.news or Wakeup()
            await self.news.wait()


@dataclass(frozen=True, slots=True)
class Offer:
    """What became of an offered event: it waits ("accepted", or "over": but the caller must now wait until the
    mailbox is within its bound again), or not. `displaced` are those that gave way to it."""

    verdict: Literal["accepted", "over", "dropped", "error"]
    displaced: tuple[Occurrence, ...] = ()


ACCEPTED, OVER, DROPPED, ERROR = Offer("accepted"), Offer("over"), Offer("dropped"), Offer("error")


class Mailbox:
    """The events that wait for one hook: at most `max_lag` of each kind.

    So what comes once in a run always gets in, whatever else waits. An event that makes its sender wait ("block") is
    in, too, which is why cancelling the sender can't lose it: the bound is exceeded by one event per sender.
    """

    def __init__(self, overflow: Overflow, max_lag: int) -> None:
        self.overflow = overflow
        self.max_lag = max_lag
        self.closed = False
        self._waiting: deque[Occurrence] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Occurrence]:
        return iter(self._waiting)

    def __repr__(self) -> str:
        return f"<Mailbox {self.overflow}: {'closed' if self.closed else f'{len(self._waiting)} waiting'}>"

    def offer(self, occurrence: Occurrence) -> Offer:
        """Put an event in, or say why not."""
        waiting, event = self._waiting, occurrence.event
        if self.closed:
            return DROPPED
        if len(waiting) < self.max_lag:
            waiting.append(occurrence)
            return ACCEPTED
        same = [other for other in waiting if other.event == event]
        if len(same) < self.max_lag:
            waiting.append(occurrence)
            return ACCEPTED
        if self.overflow == "block":
            waiting.append(occurrence)
            return OVER
        if self.overflow == "coalesce":  # the newest says it all
            for other in same:
                waiting.remove(other)
            waiting.append(occurrence)
            return Offer("accepted", tuple(same))
        return DROPPED if self.overflow == "drop" else ERROR

    @property
    def over(self) -> bool:
        """Whether more events of a kind wait than `max_lag`."""
        return len(self._waiting) > self.max_lag and any(
            count > self.max_lag for count in Counter(waiting.event for waiting in self._waiting).values()
        )

    @property
    def oldest(self) -> Occurrence | None:
        return self._waiting[0] if self._waiting else None

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
    """Decides which of a hook's epoch events are due, by its `every`. Each kind of event is paced by itself."""

    def __init__(self, every: int | Every, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = Every(epochs=every) if isinstance(every, int) else every
        self._always = self._every.epochs == 1
        self._clock = clock
        self._last: dict[str, float] = {}

    def due(self, event: str, state: TrainerState) -> bool:
        """Whether to deliver `event` now."""
        if self._always or event not in EPOCH_EVENTS:
            return True
        every = self._every
        if every.epochs is not None:
            return epoch_of(event, state) % every.epochs == 0
        if every.agent_steps is not None:
            # Whenever a multiple is passed, so that long epochs don't stretch the distance.
            passed = state.agent_step // every.agent_steps
            due = passed > self._last.get(event, 0)
            self._last[event] = passed
            return due
        now = self._clock()
        due = now - self._last.setdefault(event, now) >= (every.seconds or 0.0)
        if due:
            self._last[event] = now
        return due
