"""Takes checkpoints while the training goes on."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.included.metrics_record import metrics
from orchestrator.workers.event_loop import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from orchestrator.checkpoints import CheckpointFolder
    from orchestrator.snapshots.training_capture import CheckpointContent
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

    def __init__(self, folder: CheckpointFolder, every: int, parent: str | None = None) -> None:
        """`parent` names the checkpoint that the run goes on from."""
        self.every = every or _NEVER
        self._folder = folder
        self._saved: object = None
        self._parent = parent

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        with ExitStack() as self._claim:
            yield

    async def on_new_training_run(self, state: TrainerState) -> None:
        await in_thread(self._claim.enter_context, self._folder.claim())

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
        return await self._save(state)

    async def on_training_end(self, state: TrainerState) -> StateUpdate | None:
        return await self._save(state)

    async def _save(self, state: TrainerState) -> StateUpdate | None:
        if not state.epoch:
            return None
        if state.policy is None:
            raise RuntimeError(
                f"epoch {state.epoch} cannot be saved: hooks hold views of so many epochs that its state came without "
                "the policy; drop states earlier or raise collection.held_epochs"
            )
        content = self.run.checkpoint_content(state)
        # At the end the epoch may be saved already, but not what hooks have made of it since.
        if content.identity == self._saved:
            return None
        numbers = {
            name: value for name, value in metrics(state, self.run.hook_statistics()).items() if value is not None
        }
        path = await in_thread(self._commit, state.epoch, content, numbers)
        self._saved = content.identity
        self._parent = path.name
        return StateUpdate(latest_checkpoint_uri=path.absolute().as_uri())

    def _commit(self, epoch: int, content: CheckpointContent, numbers: dict[str, float]) -> Path:
        facts = {**content.facts, "metrics": numbers}
        return self._folder.commit(epoch=epoch, facts=facts, files=content.files, parent=self._parent)


_NEVER = 2**62
"""Epochs between checkpoints when only the final one is wanted."""
