"""Takes checkpoints while the training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from orchestrator.checkpoints import CheckpointFolder
from orchestrator.hooks.hook import Hook, StateUpdate

if TYPE_CHECKING:
    from pathlib import Path

    from state.trainer_state import TrainerState


class CheckpointHook(Hook):
    """Commits a checkpoint every so many epochs, when one is asked for, and at the end of the training.

    Hashing and writing happen in a thread that waits for the disk, on the frozen policy. A checkpoint that cannot
    be written stops the run after its epoch.
    """

    name = "checkpoint"
    max_lag = 1
    on_error = "stop"
    saves = True

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.every = every or _NEVER
        self._folder = CheckpointFolder(folder, keep=keep)
        self._saved_epoch: int | None = None

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
        return await self._save(state)

    async def on_training_end(self, state: TrainerState) -> StateUpdate | None:
        return await self._save(state)

    async def _save(self, state: TrainerState) -> StateUpdate | None:
        if state.epoch == self._saved_epoch or not state.epoch:
            return None
        if state.policy is None:
            raise RuntimeError(
                f"epoch {state.epoch} cannot be saved: hooks hold views of so many epochs that its state came without "
                "the policy; drop states earlier or raise collection.held_epochs"
            )
        path = await anyio.to_thread.run_sync(self._folder.commit, state)
        self._saved_epoch = state.epoch
        return StateUpdate(latest_checkpoint_uri=path.absolute().as_uri())


_NEVER = 2**62
"""Epochs between checkpoints when only the final one is wanted."""
