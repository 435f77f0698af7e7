"""One hook at work: takes events from its mailbox one at a time, with attempts, timeouts and its error policy."""

from __future__ import annotations

import inspect
import logging
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from orchestrator.hooks.hook import DeliveryInfo, Outcome, StateUpdate, current_delivery, overridden_events
from orchestrator.hooks.mailbox import Mailbox, Occurrence, Offer, Pace
from state.frozen_mapping import FrozenMapping

if TYPE_CHECKING:
    from orchestrator.hooks.engine import HookEngine
    from orchestrator.hooks.hook import Hook
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator.hooks")


class HookFailed(RuntimeError):
    """A hook whose `on_error` is "raise" or "stop" has failed; the cause is attached."""


class HookOverflow(RuntimeError):
    """A hook whose `overflow` is "error" fell behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookStatistics:
    """How a hook keeps up. `lag` is the number of the run's events since the one it is at, or last was."""

    state: str
    queue: int
    lag: int
    delivered: int
    handled: int
    coalesced: int
    dropped: int
    failed: int
    retried: int
    busy_seconds: float
    """Time in callbacks."""
    blocked_seconds: float
    """Time that the training waited for room in the mailbox: the exposed part of the hook's work."""

    @property
    def hidden_seconds(self) -> float:
        """Time in callbacks that cost the training nothing."""
        return max(0.0, self.busy_seconds - self.blocked_seconds)


class HookRunner:
    """Owns a hook's mailbox, task and counters."""

    def __init__(self, name: str, hook: Hook, engine: HookEngine) -> None:
        self.name = name
        self.hook = hook
        self.events = overridden_events(hook)
        self.mailbox = Mailbox(hook.overflow, hook.max_lag)
        self.room = anyio.Event()
        self.counts: Counter[str] = Counter()
        self.busy_seconds = 0.0
        self.blocked_seconds = 0.0
        self.oldest: int | None = None
        self.error: BaseException | None = None
        self._engine = engine
        self._pace = Pace(hook.every)
        self._mail = anyio.Event()
        self._failures_in_a_row = 0
        self._newest_offered = self._newest_taken = 0
        self._at_work: Occurrence | None = None
        # The outer scope lets a hook leave its resources in order whatever happens to the run.
        self._life = anyio.CancelScope(shield=True)
        self._work = anyio.CancelScope()
        self._limiter = anyio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"<HookRunner {self.name!r}: {self._state()}, {self.mailbox!r}>"

    @property
    def idle(self) -> bool:
        return self._at_work is None and not len(self.mailbox)

    def due(self, event: str, state: TrainerState, *, save: bool) -> bool:
        if self.mailbox.closed:
            return False
        return self._pace.due(event, state) or (save and self.hook.saves)

    def offer(self, occurrence: Occurrence) -> Offer:
        offer = self.mailbox.offer(occurrence)
        self.counts["coalesced"] += len(offer.displaced)
        if offer.verdict == "accepted":
            self.counts["delivered"] += 1
            self._newest_offered = occurrence.number
            self.oldest = occurrence.number if self.oldest is None else self.oldest
            self._mail.set()
        elif offer.verdict == "dropped":
            self.counts["dropped"] += 1
        return offer

    def end(self, grace: float) -> None:
        """Cancel what is going on; the hook has `grace` seconds to leave its resources."""
        self._abandon()
        self._life.deadline = anyio.current_time() + grace
        self._work.cancel()

    async def serve(self) -> None:
        """Handle events until `end`."""
        with self._life:
            async with AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(self.hook.resources())
                except Exception as error:
                    self._abandon()
                    self._failed(error, "enter its resources", fatal=True)
                    return
                with self._work:
                    while True:
                        await self._handle(await self._next())

    async def _next(self) -> Occurrence:
        while True:
            occurrence = self.mailbox.take()
            if occurrence is not None:
                self._at_work, self.oldest = occurrence, occurrence.number
                self._newest_taken = occurrence.number
                self.room.set()
                self.room = anyio.Event()
                return occurrence
            self.oldest = None
            self._mail = anyio.Event()
            await self._mail.wait()

    async def _handle(self, occurrence: Occurrence) -> None:
        outcome = "failed"
        try:
            await self._engine.predecessors(occurrence, self.hook.after)
            update = await self._attempts(occurrence)
            if update is not None:
                self._engine.take_update(occurrence, self.name, update)
            self._failures_in_a_row = 0
            self.counts["handled"] += 1
            outcome = "handled"
        except Exception as error:
            self.counts["failed"] += 1
            self._failures_in_a_row += 1
            self._failed(error, f"handle {occurrence.event} of epoch {occurrence.state.epoch}")
        finally:
            self._at_work = None
            self._engine.settle(occurrence, self.name, outcome)

    async def _attempts(self, occurrence: Occurrence) -> StateUpdate | None:
        hook = self.hook
        state = self._engine.state_for(occurrence, hook.after)
        key = f"{self._engine.run.run_id}/{self.name}/{occurrence.event}/{occurrence.number}"
        outcomes: FrozenMapping[str, Outcome] = FrozenMapping(
            {name: occurrence.outcomes.get(name, "skipped") for name in hook.after}
        )
        attempt = 0
        while True:
            begin = time.perf_counter()
            try:
                with anyio.fail_after(hook.timeout):
                    current_delivery.set(DeliveryInfo(key, attempt, outcomes))
                    return await self._call(occurrence.event, state)
            except hook.transient as error:
                if attempt >= hook.retries:
                    raise
                _log.warning("hook %r: attempt %d failed, trying again: %r", self.name, attempt + 1, error)
            finally:
                self.busy_seconds += time.perf_counter() - begin
            self.counts["retried"] += 1
            await anyio.sleep(hook.backoff * 2**attempt)
            attempt += 1

    async def _call(self, event: str, state: TrainerState) -> StateUpdate | None:
        callback = getattr(self.hook, event)
        try:
            if inspect.iscoroutinefunction(callback):
                update = await callback(state)
            else:
                # A plain function may block: it gets a thread, one at a time.
                update = await anyio.to_thread.run_sync(callback, state, abandon_on_cancel=True, limiter=self._limiter)
                if inspect.isawaitable(update):
                    update = await update
        except anyio.get_cancelled_exc_class():
            if self._work.cancel_called or anyio.current_effective_deadline() <= anyio.current_time():
                raise
            # Nobody cancelled it: the hook raised this itself, say by awaiting a task that was cancelled.
            raise RuntimeError("the callback ended as if cancelled, and nobody had cancelled it") from None
        if update is not None and not isinstance(update, StateUpdate):
            raise TypeError(f"{event} must return None or a StateUpdate, not {type(update).__name__}")
        return update

    def _failed(self, error: Exception, doing: str, *, fatal: bool = False) -> None:
        policy = self.hook.on_error
        self.error = error
        if policy == "raise":
            raise HookFailed(f"hook {self.name!r} failed to {doing}") from error
        _log.error("hook %r failed to %s", self.name, doing, exc_info=error)
        if policy == "stop":
            self._engine.run.stop(f"hook {self.name!r} failed to {doing}: {error!r}")
        elif policy == "disable" and self._failures_in_a_row >= self.hook.disable_after and not fatal:
            _log.error("hook %r is disabled after %d failures in a row", self.name, self._failures_in_a_row)
            self._abandon()

    def _abandon(self) -> None:
        for waiting in self.mailbox.close():
            self.counts["dropped"] += 1
            self._engine.settle(waiting, self.name, "skipped")
        self.room.set()

    def _state(self) -> str:
        if self.mailbox.closed:
            return "closed"
        return "idle" if self._at_work is None else f"at {self._at_work.event} of epoch {self._at_work.state.epoch}"

    def statistics(self) -> HookStatistics:
        counts = self.counts
        return HookStatistics(
            state=self._state(),
            queue=len(self.mailbox),
            lag=0 if self.idle else self._newest_offered - self._newest_taken,
            delivered=counts["delivered"],
            handled=counts["handled"],
            coalesced=counts["coalesced"],
            dropped=counts["dropped"],
            failed=counts["failed"],
            retried=counts["retried"],
            busy_seconds=self.busy_seconds,
            blocked_seconds=self.blocked_seconds,
        )
