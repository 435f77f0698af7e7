"""One hook at work: takes events from its mailbox one at a time, with attempts, timeouts and its error policy."""

from __future__ import annotations

import asyncio
import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from orchestrator.hooks.function_thread import FunctionThread
from orchestrator.hooks.hook import DeliveryInfo, Outcome, StateUpdate, current_delivery, overridden_events
from orchestrator.hooks.mailbox import ACCEPTED, Mailbox, Occurrence, Pace
from orchestrator.hooks.meter import Meter
from orchestrator.hooks.statistics import HookStatistics
from orchestrator.hooks.wakeup import Wakeup
from orchestrator.workers.event_loop import asyncio_task
from state.error import OrchestratorError
from state.frozen_mapping import FrozenMapping
from state.user_code import let_go_of_frames, line_of, represented

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from collections.abc import Set as AbstractSet

    from orchestrator.hooks.hook import Hook, RunContext
    from orchestrator.hooks.mailbox import Offer
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator.hooks")


class HookFailed(OrchestratorError, RuntimeError):
    """A hook whose `on_error` is "raise" or "stop" has failed; the cause is attached."""


class HookOverflow(OrchestratorError, RuntimeError):
    """A hook whose `overflow` is "error" fell behind."""


class Deliveries(Protocol):
    """What a runner knows of the engine that it belongs to."""

    @property
    def run(self) -> RunContext: ...
    @property
    def progress(self) -> Wakeup: ...
    @property
    def newest_epoch(self) -> int: ...
    @property
    def grace(self) -> float: ...
    @property
    def over(self) -> AbstractSet[HookRunner]: ...
    def has_taken(self, runner: HookRunner) -> None: ...
    def forget(self, runner: HookRunner) -> None: ...
    def take_update(self, occurrence: Occurrence, name: str, update: StateUpdate) -> None: ...
    def state_for(self, occurrence: Occurrence, names: tuple[str, ...]) -> TrainerState: ...


class HookRunner:
    """Owns a hook's mailbox, task and counters."""

    def __init__(
        self, name: str, hook: Hook, engine: Deliveries, predecessors: tuple[str, ...], clock: Callable[[], float]
    ) -> None:
        self.name = name
        self.hook = hook
        self.events = overridden_events(hook)
        self.unpaced = hook.every == 1
        self.mailbox = Mailbox(hook.overflow, hook.max_lag)
        self.meter = Meter()
        self._failed = False
        self._failed_at: set[tuple[object, ...]] = set()
        """Kinds of errors and the lines that raised them, of which the log has the traceback."""
        self.ended_run: BaseException | None = None
        """The first failure for which the run ends, and is not a success."""
        self.fatal: Exception | None = None
        """What `serve` is to raise."""
        self._engine = engine
        self._predecessors = predecessors
        self._pace = Pace(hook.every, clock)
        self._thread = FunctionThread(f"hook {name}")
        self._callbacks = {event: self._awaitable(getattr(hook, event)) for event in self.events}
        self._mail = Wakeup()
        self._failures_of = dict.fromkeys(self.events, 0)  # in a row, by event
        self._at_work: Occurrence | None = None
        self._closed = ""
        # The outer scope lets a hook leave its resources in order whatever happens to the run.
        self._life = anyio.CancelScope(shield=True)
        self._work = anyio.CancelScope()
        self._cancelled: type[BaseException] = GeneratorExit  # until `serve` knows its event loop
        self._task = 0
        self._native_task: asyncio.Task[Any] | None = None

    def __repr__(self) -> str:
        return f"<HookRunner {self.name!r}: {self._state()}, {len(self.mailbox)} waiting>"

    # The mailbox: all of this happens at once, nothing waits.

    def due(self, event: str, state: TrainerState) -> bool:
        return self._pace.due(event, state)

    def offer(self, occurrence: Occurrence) -> Offer:
        """Put an event into the mailbox, or settle it; what gives way to it is settled."""
        meter = self.meter
        with meter.lock:
            offer = self.mailbox.offer(occurrence)
            accepted = offer is ACCEPTED or offer.verdict in ("accepted", "over")
            if accepted:
                meter.delivered += 1
                meter.coalesced += len(offer.displaced)
            else:
                meter.dropped += 1
        if accepted:
            self._mail.set()
            for displaced in offer.displaced:
                self._settle(displaced, "skipped")
        else:
            self._settle(occurrence, "skipped")
        return offer

    @property
    def idle(self) -> bool:
        return self._at_work is None and not len(self.mailbox)

    @property
    def oldest(self) -> Occurrence | None:
        """The oldest event that it is not done with."""
        return self._at_work or self.mailbox.oldest

    @property
    def unfinished(self) -> tuple[Occurrence, ...]:
        """The events that it is not done with."""
        return (*self.mailbox,) if self._at_work is None else (self._at_work, *self.mailbox)

    def close(self, why: str) -> None:
        """Take no further events, and forget those that wait."""
        if self.mailbox.closed:
            return
        with self.meter.lock:
            self._closed = why
            abandoned = self.mailbox.close()
            self.meter.abandoned += len(abandoned)
        for waiting in abandoned:
            self._settle(waiting, "skipped")
        self._engine.forget(self)
        self._mail.set()

    def fail_run(self, error: Exception) -> None:
        """Make `serve` raise `error` after the hook has left its resources, where nothing of the hook can catch it."""
        self.fatal = self.fatal or error
        self._end("failed")

    def end(self, *, complain: bool) -> None:
        """Cancel the hook's work, and leave its resources.

        With `complain`, unfinished work of a hook that the run depends on counts as its failure.
        """
        if complain and not self.idle and self.hook.drain and self.hook.on_error in ("stop", "raise"):
            late = TimeoutError(f"hook {self.name!r} had not finished when the run ended")
            self._failed = True
            self.ended_run = self.ended_run or late
        self._end("ended")

    def _end(self, why: str) -> None:
        self.close(why)
        self._work.cancel()
        self._life.deadline = anyio.current_time() + self._engine.grace

    # The task.

    async def serve(self) -> None:
        """Handle events until `end`. Raises HookFailed where the hook's `on_error` is "raise"."""
        self._cancelled = anyio.get_cancelled_exc_class()
        self._task = anyio.get_current_task().id
        self._native_task = asyncio_task()
        doing = "enter its resources"
        try:
            if self.mailbox.closed:  # the run has ended before this task began
                return
            with self._life:
                async with self.hook.resources():
                    doing = "finish its work"
                    with self._work:
                        await self._handle_all()
                    doing = "leave its resources"
            if self._life.cancelled_caught:
                _log.warning("hook %r was cancelled: it took too long to %s", self.name, doing)
        except BaseException as error:
            own = self._hooks_own(error)
            if own is None:
                raise
            self._fail(own, doing)
        finally:
            self.close("failed" if self._failed else "ended")
            self._thread.close()
        if self.fatal is not None:
            raise self.fatal

    async def _handle_all(self) -> None:
        while True:
            with self.meter.lock:
                occurrence = self._at_work = self.mailbox.take()
            if occurrence is not None:
                if self._engine.over:
                    self._engine.has_taken(self)
                await self._handle(occurrence)
            elif self.mailbox.closed:
                return
            else:
                try:
                    await self._mail.wait()
                except BaseException as error:
                    if self._must_end(error) or self._hooks_own(error) is None:
                        raise
                    _log.warning("hook %r has cancelled the task that it runs in; it continues", self.name)

    async def _handle(self, occurrence: Occurrence) -> None:
        outcome: Outcome = "skipped"
        abandoned = False
        own: BaseException | None = None
        try:
            if self._predecessors:
                await occurrence.wait_for(self._predecessors)
            update = await self._attempts(occurrence)
            if self._native_task is not None and self._native_task.cancelling():
                self._forget_native_cancellation()
            if update is not None:
                self._engine.take_update(occurrence, self.name, update)
            outcome = "handled"
            self._failures_of[occurrence.event] = 0
        except BaseException as error:
            own = None if self._must_end(error) else self._hooks_own(error)
            if own is None:
                abandoned = True
                raise
            outcome = "failed"
            in_a_row = self._failures_of[occurrence.event] = self._failures_of[occurrence.event] + 1
            self._fail(own, f"handle {occurrence.event} of epoch {occurrence.epoch}", in_a_row)
        finally:
            own = None  # or else this frame, with the state in it, would live until the garbage collector finds it
            with self.meter.lock:
                self._at_work = None
                self.meter.handled += outcome == "handled"
                self.meter.failed += outcome == "failed"
                self.meter.abandoned += abandoned
            self._settle(occurrence, outcome)

    async def _attempts(self, occurrence: Occurrence) -> StateUpdate | None:
        hook, meter = self.hook, self.meter
        callback = self._callbacks[occurrence.event]
        state = self._engine.state_for(occurrence, self._predecessors) if self._predecessors else occurrence.state
        attempt = 0
        while True:
            current_delivery.set(partial(self._delivery, occurrence, attempt))
            meter.begin_work(occurrence)
            try:
                if hook.timeout is None:
                    update = await callback(state)
                else:
                    with anyio.fail_after(hook.timeout):
                        update = await callback(state)
                if update is not None and not isinstance(update, StateUpdate):
                    raise TypeError(
                        f"{occurrence.event} must return None or a StateUpdate, not {type(update).__name__}"
                    )
                return update
            except hook.transient as error:
                if attempt >= hook.retries:
                    raise
                _log.warning("hook %r: attempt %d failed, trying again: %r", self.name, attempt + 1, error)
            finally:
                meter.end_work()
            meter.retried += 1
            await anyio.sleep(hook.backoff * 2**attempt)
            attempt += 1

    def _awaitable(self, callback: Callable[[TrainerState], Any]) -> Callable[[TrainerState], Awaitable[Any]]:
        """The callback itself, or one that calls it in a thread, since a plain function may block."""
        if inspect.iscoroutinefunction(callback):
            return callback

        async def in_thread(state: TrainerState) -> Any:
            update = await self._thread.call(callback, state)
            return await update if inspect.isawaitable(update) else update

        return in_thread

    def _delivery(self, occurrence: Occurrence, attempt: int) -> DeliveryInfo:
        outcomes: dict[str, Outcome] = {name: occurrence.outcomes.get(name, "skipped") for name in self.hook.after}
        key = f"{self._engine.run.run_id}/{self.name}/{occurrence.event}/{occurrence.number}"
        return DeliveryInfo(key, attempt, FrozenMapping(outcomes))

    def _settle(self, occurrence: Occurrence, outcome: Outcome) -> None:
        occurrence.settle(self.name, outcome)
        self._engine.progress.set()

    # Errors.

    def _fail(self, error: BaseException, doing: str, in_a_row: int = 1) -> None:
        policy = self.hook.on_error
        if policy != "raise" and not isinstance(error, Exception):
            policy = "stop"  # sys.exit() ends the run, but in order
        self._failed = True
        if policy in ("stop", "raise"):
            self.ended_run = self.ended_run or error
        if policy == "raise":
            failed = HookFailed(f"hook {self.name!r} failed to {doing}")
            failed.__cause__ = error
            self.fail_run(failed)
            return
        text = represented(error)  # a handler may keep what it is given, and the error keeps the state
        often = "" if in_a_row == 1 else f" ({in_a_row} times in a row)"  # the same traceback would fill the log
        place = type(error), *line_of(error)
        told = in_a_row > 1 and place in self._failed_at
        self._failed_at.add(place)
        _log.error("hook %r failed to %s: %s%s", self.name, doing, text, often, exc_info=None if told else error)
        if policy == "stop":
            self._engine.run.stop(f"hook {self.name!r} failed to {doing}: {text}")
            return
        let_go_of_frames(error)
        if policy == "disable" and in_a_row >= self.hook.disable_after:
            _log.error("hook %r is disabled after %d failures in a row", self.name, in_a_row)
            self.close("disabled")

    def _must_end(self, error: BaseException) -> bool:
        """Whether `error` is the cancellation of a scope around this point."""
        return (
            not isinstance(error, Exception)
            and self._beyond_cancellation(error) is None
            and anyio.current_effective_deadline() <= anyio.current_time()
        )

    def _hooks_own(self, error: BaseException) -> BaseException | None:
        """The error as a failure of the hook; None where its coroutine is being closed.

        That includes SystemExit and KeyboardInterrupt: one that left a task would break the whole event loop off. A
        callback can end as if cancelled though nobody cancelled it, say by awaiting a task that was; or raise what
        closes a coroutine, say by throwing it into one of its generators.
        """
        self._forget_native_cancellation()
        if isinstance(error, Exception):
            return error
        beyond = self._beyond_cancellation(error)
        if isinstance(beyond, GeneratorExit):
            if not self._is_running():
                return None
            own = RuntimeError("it raised GeneratorExit, and nobody closes it")
        elif beyond is not None:
            return beyond
        else:
            own = RuntimeError("it ended as if cancelled, and nobody had cancelled it")
        own.__cause__ = error
        return own

    def _is_running(self) -> bool:
        """Whether the hook's task is what the event loop runs now: a coroutine that is being closed is not."""
        try:
            return anyio.get_current_task().id == self._task
        except RuntimeError:  # there is no event loop any more
            return False

    def _beyond_cancellation(self, error: BaseException) -> BaseException | None:
        """What in an error is neither a cancellation nor an Exception: the first, of several in a group."""
        while isinstance(error, BaseExceptionGroup):
            rest = error.split((self._cancelled, Exception))[1]
            if rest is None:
                return None
            error = rest.exceptions[0]
        return None if isinstance(error, (self._cancelled, Exception)) else error

    def _forget_native_cancellation(self) -> None:
        # A callback that has cancelled its own asyncio task leaves a mark there, which the scopes around would take
        # for their own cancellation.
        while self._native_task is not None and self._native_task.cancelling():
            self._native_task.uncancel()

    # What can be seen.

    def _state(self) -> str:
        at_work = self._at_work
        if at_work is not None:
            return f"at {at_work.event} of epoch {at_work.epoch}"
        return self._closed or ("idle" if self.idle else "behind")

    def statistics(self) -> HookStatistics:
        with self.meter.lock:
            at = self.oldest
            lag = 0 if at is None else max(0, self._engine.newest_epoch - at.state.epoch)
            return self.meter.read(state=self._state(), queue=len(self.mailbox), lag=lag)
