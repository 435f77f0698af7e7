"""Delivers events to hooks: one task and one mailbox each, in order for each hook, concurrent between hooks.

Everything about an event is decided in one step when it is published; only then does anyone wait. So a publisher
that is cancelled leaves nothing half done.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import anyio

from orchestrator.hooks.check import HookConfigurationError, check_hooks, predecessors
from orchestrator.hooks.hook import epoch_of, hook_name
from orchestrator.hooks.mailbox import ACCEPTED, Occurrence
from orchestrator.hooks.runner import HookOverflow, HookRunner
from orchestrator.hooks.updates import Updates, changes_of, with_changes
from orchestrator.hooks.wakeup import Wakeup
from state.frozen_mapping import FrozenMapping

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence

    from orchestrator.hooks.hook import Hook, RunContext, StateUpdate
    from orchestrator.hooks.meter import Observer
    from orchestrator.hooks.statistics import HookStatistics
    from state.eval_rewards import EvalRewardSummary
    from state.trainer_state import TrainerState

__all__ = ["EngineStatistics", "HookConfigurationError", "HookEngine", "check_hooks"]

_log = logging.getLogger("orchestrator.hooks")
_NOBODY: Mapping[str, bool] = {}
_at_work: set[int] = set()
"""Identities of the hooks of all engines that run now."""


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    events: int
    """Events published that some hook listens to."""
    hooks: Mapping[str, HookStatistics]


@dataclass(frozen=True, slots=True)
class _Listeners:
    """Who handles an event. Where all get it each time, as is usual, there is nothing to find out per event."""

    runners: tuple[HookRunner, ...]
    names: frozenset[str]
    unpaced: bool


class HookEngine:
    """The hooks of one run. Use: `async with engine.running(): await engine.publish(...); await engine.drain(...)`.

    `grace` is the time in seconds that hooks have to leave their resources, `clock` measures `Every(seconds=…)`.
    Raises HookConfigurationError.
    """

    def __init__(
        self,
        hooks: Sequence[Hook],
        run: RunContext,
        *,
        grace: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_hooks(hooks)
        self.run = run
        self.progress = Wakeup()
        """Set whenever a hook is done with an event."""
        self.newest_epoch = 0
        self.grace = grace
        self._events = 0
        self._updates = Updates()
        self._eval_scores: dict[int, EvalRewardSummary] = {}
        self._newest_commit: str | None = None
        self._blocking = True
        self.over: set[HookRunner] = set()
        """Who holds up publishers, because more waits than their hook's `max_lag`."""
        self._room = Wakeup()
        before = predecessors(hooks)
        self._runners = {name: HookRunner(name, hook, self, before[name], clock) for name, hook in _named(hooks)}
        self._states_missed: dict[str, int] = {}
        """By hook, of how many checkpoints in a row."""
        self._order = {name: place for place, name in enumerate(self._runners)}
        self._listeners: dict[str, _Listeners] = {}
        self._find_listeners()
        for hook in hooks:
            hook.run = run

    def __repr__(self) -> str:
        return f"<HookEngine: {self._events} events, hooks {list(self._runners.values())}>"

    @property
    def hooks(self) -> Mapping[str, Hook]:
        """By name, in the order of registration."""
        return {name: runner.hook for name, runner in self._runners.items()}

    def listens(self, event: str) -> bool:
        """Whether any hook handles `event`: if not, no state need be made for it."""
        return event in self._listeners

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """While entered, hooks receive what is published. Leaving cancels what has not been drained.

        Raises an ExceptionGroup with HookFailed where a hook whose `on_error` is "raise" has failed, and
        HookConfigurationError where a hook is at work in another run.
        """
        hooks = [runner.hook for runner in self._runners.values()]
        busy = [hook_name(hook) for hook in hooks if id(hook) in _at_work]
        if busy:
            raise HookConfigurationError(f"hooks {busy} are at work in another run; give each run its own instances")
        _at_work.update(map(id, hooks))
        try:
            async with anyio.create_task_group() as tasks:
                for runner in self._runners.values():
                    tasks.start_soon(runner.serve, name=f"hook {runner.name}")
                try:
                    yield
                except BaseException:
                    self._end(complain=False)
                    raise
                self._end(complain=True)
        finally:
            _at_work.difference_update(map(id, hooks))

    def due(self, event: str, state: TrainerState, names: Collection[str]) -> frozenset[str]:
        """Which of the hooks called `names` an event with the counters of `state` is due for, before it comes.

        That counts as its coming, so ask once for each event, and tell `publish` who was `chosen`."""
        return frozenset(
            name for name in names if self._runners[name].due(event, state) and not self._runners[name].mailbox.closed
        )

    def epochs_in_hand(self, names: Collection[str] | None = None) -> frozenset[int]:
        """The epochs that the hooks called `names`, or all, are not done with, and of which they may yet return
        something."""
        runners = self._runners.values() if names is None else [self._runners[name] for name in names]
        return frozenset(one.state.epoch for runner in runners for one in runner.unfinished)

    def eval_scores(self) -> Mapping[int, EvalRewardSummary]:
        """Every summary of scores that was returned, by policy version; of several of one version, the last."""
        return dict(self._eval_scores)

    async def publish(self, event: str, state: TrainerState, *, chosen: Mapping[str, bool] = _NOBODY) -> None:
        """Put an event into the mailboxes; then wait while a hook whose `overflow` is "block" has too much to do.

        `chosen` says of some hooks whether they get it; for the others their `every` decides. Raises HookOverflow for
        a hook whose `overflow` is "error" and whose mailbox is full; the others have got the event all the same.
        """
        overflown = self._put(event, state, chosen)
        if overflown:
            raise _overflow(event, state, overflown)
        if self.over and self._blocking:
            await self._wait_for_room()

    def deliver(self, event: str, state: TrainerState, names: Collection[str]) -> None:
        """Put an event into the mailboxes of the hooks called `names`, due or not. Raises HookOverflow as `publish`."""
        overflown = self._put(event, state, {name: name in names for name in self._runners})
        if overflown:
            raise _overflow(event, state, overflown)

    def unblock(self) -> None:
        """From now on no publisher waits for a hook: the run is to end, and must not depend on one that hangs."""
        self._blocking = False
        self._room.set()

    async def drain(self, seconds: float) -> tuple[str, ...]:
        """Wait until all hooks with `drain` have handled what waits for them; returns the names of those that did not
        within `seconds`."""
        with anyio.move_on_after(seconds):
            while self._undrained():
                await self.progress.wait()
        return self._undrained()

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of every attempt of a hook, and of every time that the training has waited for one."""
        for name, runner in self._runners.items():
            runner.meter.observe = partial(observer, name)

    def fold(self, state: TrainerState) -> TrainerState:
        """`state` with everything that hooks have returned so far: newest event first, then registration order."""
        return self._updates.fold(state)

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            self._events, FrozenMapping({name: runner.statistics() for name, runner in self._runners.items()})
        )

    def holders(self) -> tuple[str, ...]:
        """Names of hooks that are at work or have mail, those with the oldest first: they may hold views."""
        held = {name: oldest.number for name, runner in self._runners.items() if (oldest := runner.oldest) is not None}
        return tuple(sorted(held, key=held.__getitem__))

    def failure(self) -> BaseException | None:
        """The error of the first hook for which the run ends, by its `on_error` or since it raised SystemExit or
        KeyboardInterrupt: the run is not a success."""
        errors = (runner.ended_run for runner in self._runners.values())
        return next((error for error in errors if error is not None), None)

    def fatal(self) -> bool:
        """Whether a hook has ended the run at once, so that `running` is about to raise. Other hooks still handle what
        is published, until `running` is left."""
        return any(runner.fatal is not None for runner in self._runners.values())

    def hook_states(self) -> dict[str, Mapping[str, object]]:
        """What each hook wants a checkpoint to keep, by name; hooks without state are left out, and so, with an error
        in the log, are those that fail to give it or give what JSON can't say."""
        states: dict[str, Mapping[str, object]] = {}
        for name, runner in self._runners.items():
            try:
                given = dict(runner.hook.state_dict())
                _check_keys(given, "the state")
                state = json.loads(json.dumps(given))
            except (Exception, SystemExit) as error:
                missed = self._states_missed[name] = self._states_missed.get(name, 0) + 1
                told = f"a checkpoint is without the state of hook {name!r}, which failed to give it: {error!r}"
                if missed == 1:
                    _log.error(told, exc_info=error)
                else:
                    _log.error("%s (%d times in a row)", told, missed)
                continue
            self._states_missed.pop(name, None)
            if state:
                states[name] = state
        return states

    def load_hook_states(self, states: Mapping[str, Mapping[str, object]]) -> None:
        """Give hooks what `hook_states` returned in an earlier run. Raises what a hook raises, with its name."""
        unknown = sorted(states.keys() - self._runners.keys())
        if unknown:
            _log.warning("the checkpoint has state of hooks that this run does not have: %s", ", ".join(unknown))
        for name, state in states.items():
            if name in self._runners:
                try:
                    self._runners[name].hook.load_state_dict(state)
                except Exception as error:
                    error.add_note(f"while hook {name!r} took over its state from a checkpoint")
                    raise

    # For the runners.

    def has_taken(self, runner: HookRunner) -> None:
        """A runner has taken from its mailbox, or closed it."""
        if runner in self.over and not runner.mailbox.over:
            self.over.discard(runner)
            self._room.set()

    def forget(self, runner: HookRunner) -> None:
        """A runner takes no further events."""
        self.has_taken(runner)
        self._find_listeners()

    def state_for(self, occurrence: Occurrence, names: tuple[str, ...]) -> TrainerState:
        """The event's state, with what the named predecessors have returned for it, in registration order."""
        state = occurrence.state
        for name in names:
            if name in occurrence.changes:
                state = with_changes(state, occurrence.changes[name])
        return state

    def take_update(self, occurrence: Occurrence, name: str, update: StateUpdate) -> None:
        """Keep what a hook has returned for the next published state, and do at once what it asks of the run."""
        changes = changes_of(update, name, occurrence.state)
        occurrence.changes[name] = changes
        self._updates.take((occurrence.number, self._order[name]), changes)
        if update.eval_scores is not None:
            version = update.eval_scores.policy_version
            self._eval_scores[occurrence.state.policy_version if version is None else version] = update.eval_scores
        if update.stop:
            self.run.stop(f"hook {name!r} asked for it")
        if update.save_now:
            self.run.request_checkpoint()
        if update.latest_checkpoint_uri not in (None, self._newest_commit):
            self._newest_commit = update.latest_checkpoint_uri
            # Not back to whoever reported it: a hook that copies checkpoints would copy its copies.
            state = with_changes(occurrence.state, changes)
            for other in self._put("on_checkpoint_committed", state, {name: False}):
                self._runners[other].fail_run(_overflow("on_checkpoint_committed", state, [other]))

    # How.

    def _put(self, event: str, state: TrainerState, chosen: Mapping[str, bool]) -> list[str]:
        """Offer an event to all hooks that it is due for; returns the names of those that overflow."""
        listeners = self._listeners.get(event)
        if listeners is None:
            return []
        due, names = listeners.runners, listeners.names
        if chosen or not listeners.unpaced:
            due = [
                runner for runner in due if (chosen[runner.name] if runner.name in chosen else runner.due(event, state))
            ]
            names = frozenset([runner.name for runner in due])
        occurrence = Occurrence(self._events, event, state, names)
        self._events += 1
        self.newest_epoch = state.epoch
        overflown: list[str] = []
        for runner in due:
            offer = runner.offer(occurrence)
            if offer is not ACCEPTED:
                if offer.verdict == "over":
                    self.over.add(runner)
                elif offer.verdict == "error":
                    overflown.append(runner.name)
        return overflown

    def _find_listeners(self) -> None:
        open_runners = [runner for runner in self._runners.values() if not runner.mailbox.closed]
        self._listeners = {
            event: _Listeners(
                listening := tuple(runner for runner in open_runners if event in runner.events),
                frozenset(runner.name for runner in listening),
                all(runner.unpaced for runner in listening),
            )
            for event in {event for runner in open_runners for event in runner.events}
        }

    async def _wait_for_room(self) -> None:
        # A copy: a publisher that fills a mailbox while we wait does its own waiting.
        blocking = list(self.over)
        for runner in blocking:
            runner.meter.begin_block()
        try:
            while blocking and self._blocking:
                await self._room.wait()
                for runner in [runner for runner in blocking if runner not in self.over]:
                    blocking.remove(runner)
                    runner.meter.end_block()
        finally:
            for runner in blocking:
                runner.meter.end_block()

    def _undrained(self) -> tuple[str, ...]:
        return tuple(name for name, runner in self._runners.items() if runner.hook.drain and not runner.idle)

    def _end(self, *, complain: bool) -> None:
        # Hooks are shielded, so that they can leave their resources in order: end them explicitly.
        for runner in self._runners.values():
            runner.end(complain=complain)


def _overflow(event: str, state: TrainerState, names: Sequence[str]) -> HookOverflow:
    return HookOverflow(
        f"hook {', '.join(map(repr, names))} is too far behind when {event} of epoch {epoch_of(event, state)} comes, "
        "and its `overflow` is 'error'; make it faster, raise its `max_lag`, or choose another `overflow`"
    )


def _check_keys(value: object, where: str) -> None:
    """Raises TypeError for a key that is no text: JSON would make text of it in silence."""
    if isinstance(value, dict):
        for key, item in cast("dict[object, object]", value).items():
            if type(key) is not str:
                raise TypeError(f"the key {key!r} of {where} must be text, or else it would come back as text")
            _check_keys(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(cast("list[object]", value)):
            _check_keys(item, f"{where}[{place}]")


def _named(hooks: Sequence[Hook]) -> list[tuple[str, Hook]]:
    return [(hook_name(hook), hook) for hook in hooks]
