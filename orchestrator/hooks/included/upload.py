"""Copies committed checkpoints to an object store while the training continues."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from orchestrator.checkpoints import CheckpointError, StoreUnavailable
from orchestrator.checkpoints.find import local_path
from orchestrator.hooks.function_thread import FunctionThread
from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.included.copies import Copies

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from orchestrator.checkpoints.remote import RemoteCheckpoints
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator.hooks")


class UploadHook(Hook):
    """Copies each checkpoint of `folder` to `<address>/checkpoints/`, one at a time.

    Behind a slow store it skips all but the newest; the final one is always tried. A store that fails costs an
    error in the log: the local checkpoint is committed. Requests happen in a thread of the hook's own and are
    bounded by timeouts; a cancelled run waits for none of them.
    """

    name = "upload"
    max_lag = 1
    retries = 1  # for a commit whose answer was lost, which the store's client does not repeat

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._address = address
        self._thread = FunctionThread("upload of checkpoints")
        self.copies = Copies(address)
        self._failed: Path | None = None
        """The newest checkpoint, if it could not be copied."""

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        self._failed = None
        self.copies.begin()
        self._copying = _Copying(self._folder, self._address)
        try:
            yield
        finally:
            self._thread.close()
            self._copying.give_up()

    async def on_checkpoint_committed(self, state: TrainerState) -> StateUpdate | None:
        path = local_path(state.latest_checkpoint_uri, self._folder)
        return None if path is None else await self._copy(path)

    async def on_training_end(self, state: TrainerState) -> StateUpdate | None:
        update = None if self._failed is None else await self._copy(self._failed)
        if self._copying.unscored:
            await self._thread.call(self._copying.upload_scores)
        return update

    async def _copy(self, path: Path) -> StateUpdate | None:
        self._failed = path
        with self.copies.copying(path):
            address = await self._thread.call(self._copying.copy, path)
        self._failed = None
        return None if address is None else StateUpdate(latest_checkpoint_uri=address)


class _Copying:
    """The copying of one run, which may still be at work in its thread when the next run begins."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._address = address
        self._remote: RemoteCheckpoints | None = None
        self._given_up = False
        self.unscored: list[Path] = []
        """What has been copied without its scores."""

    def give_up(self) -> None:
        """From now on no further request begins."""
        self._given_up = True
        if self._remote is not None:
            self._remote.objects.give_up()

    def copy(self, path: Path) -> str | None:
        """The address of the copy; None where the checkpoint is gone. Blocks."""
        if self._remote is None:
            # Only now and here: it takes a moment to import, and may look for credentials over the network.
            from orchestrator.checkpoints.objects import Objects
            from orchestrator.checkpoints.remote import RemoteCheckpoints

            self._remote = RemoteCheckpoints(Objects(self._address))
            if self._given_up:  # in the meantime
                self._remote.objects.give_up()
        try:
            address = self._remote.upload(path, config=self._folder.parent / "config.toml")
            self.unscored.append(path)
            self.upload_scores()
            return address
        except StoreUnavailable:
            raise
        except CheckpointError:
            if path.exists():
                raise
            _log.info("checkpoint %s is not uploaded: it was deleted before its turn came", path)
            return None

    def upload_scores(self) -> None:
        """Copy the scores that have come since. Blocks."""
        assert self._remote is not None
        for path in list(self.unscored):
            # One that is deleted here is not among the best.
            if not path.exists() or self._remote.upload_scores(path):
                self.unscored.remove(path)
