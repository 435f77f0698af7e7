"""The newest state of a run, and whoever waits for a newer one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.hooks.wakeup import Wakeup

if TYPE_CHECKING:
    from orchestrator.hooks.engine import HookEngine
    from state.trainer_state import TrainerState


class NewestState:
    """Owns the state of the last completed epoch. Every state that the run publishes is derived from it here, and so
    has what hooks have returned by then."""

    def __init__(self, engine: HookEngine, state: TrainerState) -> None:
        self._engine = engine
        self._news = Wakeup()
        self.state = state

    def derive(self, base: TrainerState | None = None, **changes: Any) -> TrainerState:
        """`base` (None: the newest state) with `changes` and with what hooks have returned so far."""
        base = self.state if base is None else base
        return self._engine.fold(replace(base, **changes) if changes else base)

    def advance(self, base: TrainerState | None = None, **changes: Any) -> TrainerState:
        """As `derive`, and that is the newest state from now on."""
        self.state = self.derive(base, **changes)
        self.wake()
        return self.state

    def wake(self) -> None:
        """Wake every waiter: something else that they may wait for has happened."""
        self._news.set()

    async def news(self) -> None:
        """Wait for the next `advance` or `wake`."""
        await self._news.wait()
