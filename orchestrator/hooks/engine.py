"""Delivers events to hooks: one task and one mailbox each, in order for each hook, concurrent between hooks.

What is decided about an event is decided in `mailbox`; here is only the awaiting.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anyio

from orchestrator.hooks.hook import Every, hook_name, overridden_events
from orchestrator.hooks.mailbox import Occurrence
from orchestrator.hooks.runner import HookOverflow, HookRunner, HookStatistics
from state.frozen_mapping import FrozenMapping
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from orchestrator.hooks.hook import Hook, RunContext, StateUpdate

_log = logging.getLogger("orchestrator.hooks")
_STATE_FIELDS = ("eval_scores", "latest_checkpoint_uri", "latest_wandb_uri")


class HookConfigurationError(ValueError):
    """The hooks as given cannot be run together; the message lists every problem."""


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    events: int
    hooks: Mapping[str, HookStatistics]


class HookEngine:
    """The hooks of one run. Use: `async with engine.running(): await engine.publish(...); await engine.drain(...)`."""

    def __init__(self, hooks: Sequence[Hook], run: RunContext, *, grace: float = 5.0) -> None:
        check_hooks(hooks)
        self.run = run
        self._grace = grace
        self._lock = anyio.Lock()
        self._settled = anyio.Event()
        self._events = 0
        self._known: dict[str, tuple[int, Any]] = {}
        self._results: dict[str, tuple[int, Any]] = {}
        self._committed: list[TrainerState] = []
        self._has_committed = anyio.Event()
        self._updates: list[tuple[int, int, StateUpdate]] = []
        order = {hook_name(hook): index for index, hook in enumerate(hooks)}
        self._runners = {name: HookRunner(name, hook, self) for name, hook in zip(order, hooks, strict=True)}
        self._order = order
        self._listeners = {
            event: tuple(runner for runner in self._runners.values() if event in runner.events)
            for event in sorted({event for runner in self._runners.values() for event in runner.events})
        }
        for hook in hooks:
            hook.run = run

    def __repr__(self) -> str:
        return f"<HookEngine: {self._events} events, hooks {list(self._runners.values())}>"

    def listens(self, event: str) -> bool:
        """Whether any hook handles `event`: if not, no state need be made for it."""
        return event in self._listeners

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """While entered, hooks receive what is published. Leaving cancels what has not been drained."""
        async with anyio.create_task_group() as tasks:
            for runner in self._runners.values():
                tasks.start_soon(runner.serve, name=f"hook {runner.name}")
            announcer = anyio.CancelScope()
            if self.listens("on_checkpoint_committed"):
                tasks.start_soon(self._announce_commits, announcer, name="announce commits")
            try:
                yield
            finally:
                # Hooks are shielded, so that they can leave their resources in order: end them explicitly.
                announcer.cancel()
                for runner in self._runners.values():
                    runner.end(self._grace)

    async def publish(self, event: str, state: TrainerState, *, save: bool = False) -> None:
        """Put an event into the mailboxes; waits only for hooks whose `overflow` is "block" and whose mailbox is full.

        With `save`, hooks that take checkpoints get it even where it is not their turn. Raises HookOverflow for a hook whose `overflow` is "error" and whose mailbox is full.
        """
        listeners = self._listeners.get(event)
        if not listeners:
            return
        async with self._lock:  # two publishers must not overtake each other at a mailbox that is full
            occurrence = Occurrence(self._events, event, state)
            self._events += 1
            due = [runner for runner in listeners if runner.due(event, state, save=save)]
            occurrence.waiting = {runner.name for runner in due}
            full = [runner for runner in due if not self._offer(runner, occurrence)]
            for runner in full:
                await self._offer_when_there_is_room(runner, occurrence)

    async def drain(self, seconds: float) -> tuple[str, ...]:
        """Wait until all hooks with `drain` have handled what waits for them; returns the names of those who did not
        within `seconds`."""
        with anyio.move_on_after(seconds):
            while self._undrained():
                await self._settled.wait()
        return self._undrained()

    def fold(self, state: TrainerState) -> TrainerState:
        """`state` with everything that hooks have returned so far: newest event first, then registration order."""
        if self._updates:
            self._updates.sort(key=lambda entry: entry[:2])
            for number, _, update in self._updates:
                for name in _STATE_FIELDS:
                    value = getattr(update, name)
                    if value is not None and self._known.get(name, (-1, None))[0] <= number:
                        self._known[name] = number, value
                for name, value in update.results.items():
                    if self._results.get(name, (-1, None))[0] <= number:
                        self._results[name] = number, value
            self._updates.clear()
        if not self._known and not self._results:
            return state
        results = FrozenMapping({name: value for name, (_, value) in self._results.items()}) or None
        return replace(state, results=results, **{name: value for name, (_, value) in self._known.items()})

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            self._events, FrozenMapping({name: runner.statistics() for name, runner in self._runners.items()})
        )

    def holders(self) -> tuple[str, ...]:
        """Names of hooks that are at work or have mail, those with the oldest first: who may be holding views."""
        busy = [runner for runner in self._runners.values() if runner.oldest is not None]
        return tuple(runner.name for runner in sorted(busy, key=lambda runner: runner.oldest or 0))

    def failure(self) -> BaseException | None:
        """The error of the first hook that failed with `on_error` "stop": the run ends, and is not a success."""
        return next((runner.error for runner in self._runners.values() if runner.hook.on_error == "stop"), None)

    def hook_states(self) -> dict[str, Mapping[str, object]]:
        """What each hook wants a checkpoint to keep, by name; hooks without state are left out."""
        states = {name: runner.hook.state_dict() for name, runner in self._runners.items()}
        return {name: state for name, state in states.items() if state}

    # For the runners.

    def settle(self, occurrence: Occurrence, name: str, outcome: Any) -> None:
        """A hook is done with an event: let those who wait for it go on."""
        occurrence.settle(name, outcome)
        self._settled.set()
        self._settled = anyio.Event()

    async def predecessors(self, occurrence: Occurrence, names: tuple[str, ...]) -> None:
        """Wait until the named hooks are done with the event."""
        while not occurrence.waiting.isdisjoint(names):
            await self._settled.wait()

    def state_for(self, occurrence: Occurrence, names: tuple[str, ...]) -> TrainerState:
        """The event's state, with what the named predecessors have returned for it."""
        state = occurrence.state
        for name in sorted(set(names) & occurrence.updates.keys(), key=self._order.__getitem__):
            state = _apply(state, occurrence.updates[name])
        return state

    def take_update(self, occurrence: Occurrence, name: str, update: StateUpdate) -> None:
        """Keep what a hook has returned for the next published state, and do at once what it asks of the run."""
        occurrence.updates[name] = update
        self._updates.append((occurrence.number, self._order[name], update))
        if update.stop:
            self.run.stop(f"hook {name!r} asked for it")
        if update.save_now:
            self.run.request_checkpoint()
        if update.latest_checkpoint_uri is not None:
            self._committed.append(_apply(occurrence.state, update))
            self._has_committed.set()

    # How.

    def _offer(self, runner: HookRunner, occurrence: Occurrence) -> bool:
        offer = runner.offer(occurrence)
        for displaced in offer.displaced:
            self.settle(displaced, runner.name, "skipped")
        if offer.verdict == "dropped":
            self.settle(occurrence, runner.name, "skipped")
        elif offer.verdict == "error":
            raise HookOverflow(
                f"hook {runner.name!r} has {len(runner.mailbox)} events waiting when {occurrence.event} of epoch "
                f"{occurrence.state.epoch} comes, and its overflow is 'error'; make it faster, raise its max_lag, or "
                "choose another overflow"
            )
        return offer.verdict != "full"

    async def _offer_when_there_is_room(self, runner: HookRunner, occurrence: Occurrence) -> None:
        begin = time.perf_counter()
        try:
            while not self._offer(runner, occurrence):
                await runner.room.wait()
        finally:
            runner.blocked_seconds += time.perf_counter() - begin

    def _undrained(self) -> tuple[str, ...]:
        return tuple(runner.name for runner in self._runners.values() if runner.hook.drain and not runner.idle)

    async def _announce_commits(self, scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                await self._has_committed.wait()
                self._has_committed = anyio.Event()
                while self._committed:
                    await self.publish("on_checkpoint_committed", self._committed.pop(0))


def _apply(state: TrainerState, update: StateUpdate) -> TrainerState:
    fields = {name: getattr(update, name) for name in _STATE_FIELDS if getattr(update, name) is not None}
    if update.results:
        fields["results"] = FrozenMapping({**(state.results or {}), **update.results})
    return replace(state, **fields) if fields else state


def check_hooks(hooks: Sequence[Hook]) -> None:
    """Raises HookConfigurationError listing names given twice, unknown or circular predecessors, bad settings."""
    names = [hook_name(hook) for hook in hooks]
    problems = [
        f"{count} hooks are called {name!r}; give each its own `name`"
        for name, count in Counter(names).items()
        if count > 1
    ]
    after = dict(zip(names, (hook.after for hook in hooks), strict=True))
    for name, hook in zip(names, hooks, strict=True):
        if isinstance(hook.after, str):
            problems.append(f"hook {name!r}: `after` must be a tuple of names, such as ({hook.after!r},)")
            continue
        problems += [
            f"hook {name!r} comes after {other!r}, and there is no such hook; there are {names}"
            for other in hook.after
            if other not in after
        ]
        if not overridden_events(hook):
            problems.append(f"hook {name!r} overrides no callback, so it would never be called")
        problems += _check_settings(name, hook)
    cycle = _cycle(after)
    if cycle:
        problems.append(f"hooks wait for each other in a circle: {' after '.join(cycle)}")
    if problems:
        raise HookConfigurationError("; ".join(problems))


def _check_settings(name: str, hook: Hook) -> list[str]:
    every = Every(epochs=hook.every) if isinstance(hook.every, int) else hook.every
    given = [value for value in (every.epochs, every.agent_steps, every.seconds) if value is not None]
    rules = [
        (len(given) == 1 and given[0] > 0, f"`every` must be one positive distance, not {hook.every!r}"),
        (hook.max_lag >= 1, f"`max_lag` must be at least 1, not {hook.max_lag}"),
        (hook.timeout is None or hook.timeout > 0, f"`timeout` must be positive seconds, not {hook.timeout}"),
        (hook.retries >= 0, f"`retries` must not be negative, but is {hook.retries}"),
        (hook.overflow in ("block", "coalesce", "drop", "error"), f"unknown `overflow` {hook.overflow!r}"),
        (hook.on_error in ("log", "disable", "stop", "raise"), f"unknown `on_error` {hook.on_error!r}"),
    ]
    return [f"hook {name!r}: {problem}" for holds, problem in rules if not holds]


def _cycle(after: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The names along a circle, the first repeated at the end; empty when there is none."""
    settled: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in settled or name not in after:
            return []
        for other in after[name]:
            found = visit(other, [*path, name])
            if found:
                return found
        settled.add(name)
        return []

    return next((found for name in after if (found := visit(name, []))), [])
