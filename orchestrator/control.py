"""The wishes of hooks, signals and the embedding program about a run: pause, resume, stop, checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio
import anyio.from_thread
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.workers import Interrupt

StopRequest: TypeAlias = Literal["no", "after_epoch", "now"]


class RunControl:
    """Wishes are kept here and met by the training loop; every method can be called from any thread."""

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt
        self._token = anyio.lowlevel.current_token()
        self._changed = anyio.Event()
        self.paused = False
        self.stop_requested: StopRequest = "no"
        self.reason = ""
        self._checkpoint_requested = False

    def __repr__(self) -> str:
        return f"<RunControl: {'paused' if self.paused else 'running'}, stop {self.stop_requested}>"

    def pause(self) -> None:
        self.paused = True
        self._wake()

    def resume(self) -> None:
        self.paused = False
        self._wake()

    def stop(self, reason: str = "") -> None:
        if self.stop_requested == "no":
            self.stop_requested, self.reason = "after_epoch", reason
        self._wake()

    def stop_now(self, reason: str = "") -> None:
        self.stop_requested, self.reason = "now", reason or self.reason
        self.interrupt.set()
        self._wake()

    def request_checkpoint(self) -> None:
        self._checkpoint_requested = True

    def take_checkpoint_request(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        requested, self._checkpoint_requested = self._checkpoint_requested, False
        return requested

    @property
    def stopping(self) -> bool:
        return self.stop_requested != "no"

    async def may_begin(self) -> bool:
        """Waits while the run is paused; False when no further epoch is to begin."""
        await self.wait_until(lambda: self.stopping or not self.paused)
        return not self.stopping

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits for a change after which `condition` holds."""
        while not condition():
            await self._changed.wait()

    def _wake(self) -> None:
        try:
            here = anyio.lowlevel.current_token() == self._token
        except (RuntimeError, anyio.NoEventLoopError):
            here = False
        if here:
            self._notify()
        else:
            anyio.from_thread.run_sync(self._notify, token=self._token)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
