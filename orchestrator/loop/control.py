"""What hooks, signals and the embedding program request of a run: pause, resume, stop, checkpoint."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio.lowlevel

from orchestrator.hooks.wakeup import Wakeup
from orchestrator.workers.event_loop import call_soon

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.workers.interrupt import Interrupt

StopLevel: TypeAlias = Literal["no", "after_epoch", "now"]


class RunControl:
    """Requests are kept here and met by the training loop. They return at once, and can be made from any thread and
    from signal handlers, also after the run's end, where they do nothing. Made inside the event loop of the run."""

    def __init__(self, interrupt: Interrupt, on_stop_now: Callable[[], object] = lambda: None) -> None:
        """`on_stop_now` is called in the event loop when the run is to end now."""
        self.interrupt = interrupt
        self._on_stop_now = on_stop_now
        self._token = anyio.lowlevel.current_token()
        self._changed = Wakeup()
        self.paused = False
        self.stop_requested: StopLevel = "no"
        self.reason = ""
        self.learning_rate_scale = 1.0
        self.checkpoint_requested = False

    def __repr__(self) -> str:
        return f"<RunControl: {'paused' if self.paused else 'running'}, stop {self.stop_requested}>"

    def pause(self) -> None:
        """Begin no further epoch until `resume`."""
        self.paused = True
        self._wake()

    def resume(self) -> None:
        self.paused = False
        self._wake()

    def stop(self, reason: str = "") -> None:
        """Finish the present epoch and end the run. The first reason is kept."""
        if self.stop_requested == "no":
            self.stop_requested, self.reason = "after_epoch", reason
        self._wake()

    def stop_now(self, reason: str = "") -> None:
        """End the run after the present minibatch."""
        self.stop_requested, self.reason = "now", reason or self.reason
        self.interrupt.set()
        self._wake()
        self.call_soon(self._on_stop_now)

    def request_checkpoint(self) -> None:
        """Take a checkpoint at the end of the present epoch; while the run is paused, of the last one."""
        self.checkpoint_requested = True
        self._wake()

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the scheduled learning rate with `factor` in the epochs that are learned from now on.

        Raises ValueError for what is negative or not finite.
        """
        if not 0 <= factor < math.inf:
            raise ValueError(f"the learning rate can't be multiplied with {factor}: expected a finite number from 0 on")
        self.learning_rate_scale = float(factor)

    def take_checkpoint_request(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        requested, self.checkpoint_requested = self.checkpoint_requested, False
        return requested

    @property
    def stopping(self) -> bool:
        return self.stop_requested != "no"

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have the run's event loop call `function`, and return at once."""
        call_soon(self._token, function)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits for a request after which `condition` holds."""
        while not condition():
            await self._changed.wait()

    def _wake(self) -> None:
        # Also from inside the event loop: a signal handler looks like code of it, while the loop sleeps.
        self.call_soon(self._changed.set)
