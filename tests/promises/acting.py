"""A hook that does what it is told, and a small training with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator import (
    Hook,
    Trainer,
)
from state.trainer_state import TrainerState
from tests.orchestrator.training import small_config


class Act(Hook):
    """Does `act` at the end of each epoch, and returns what it returns."""

    overflow = "block"

    def __init__(self, act: Callable[[TrainerState], Any], name: str = "act", **settings: Any) -> None:
        self.act = act
        self.name = name
        for setting, value in settings.items():
            setattr(self, setting, value)

    async def on_epoch_end(self, state: TrainerState) -> Any:
        return self.act(state)


async def trained(*hooks: Hook, losses: Any = None, **settings: Any) -> TrainerState:
    settings = {"staleness": 0} | settings
    return await Trainer(small_config(**settings), hooks=hooks, losses=losses).run()
