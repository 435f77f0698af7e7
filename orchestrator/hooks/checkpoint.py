"""Takes checkpoints while the training goes on."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
from safetensors.numpy import save

from orchestrator.checkpoints import POLICY
from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.metrics import metrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from orchestrator.checkpoints import CheckpointFolder
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

    def __init__(self, folder: CheckpointFolder, every: int) -> None:
        self.every = every or _NEVER
        self._folder = folder
        self._saved_epoch: int | None = None

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        with ExitStack() as self._claim:
            yield

    async def on_new_training_run(self, state: TrainerState) -> None:
        await anyio.to_thread.run_sync(self._claim.enter_context, self._folder.claim())

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
        path = await anyio.to_thread.run_sync(self._commit, state)
        self._saved_epoch = state.epoch
        return StateUpdate(latest_checkpoint_uri=path.absolute().as_uri())

    def _commit(self, state: TrainerState) -> Path:
        assert state.policy is not None
        facts = {
            "agent_step": state.agent_step,
            "policy_version": state.policy.version,
            "metrics": {name: value for name, value in metrics(state, self.run).items() if value is not None},
        }
        files = {POLICY: save(dict(state.policy.tensors), metadata={"format": "pt"})}
        return self._folder.commit(epoch=state.epoch, facts=facts, files=files)


_NEVER = 2**62
"""Epochs between checkpoints when only the final one is wanted."""
