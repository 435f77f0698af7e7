"""Uploads committed checkpoints to Weights & Biases as artifacts while the training continues."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.checkpoint import open_checkpoint
from orchestrator.checkpoints.find import local_path
from orchestrator.checkpoints.locks import hold
from orchestrator.checkpoints.manifest import MANIFEST
from orchestrator.hooks.function_thread import FunctionThread
from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.included.copies import Copies
from orchestrator.metrics.sink import RunInfo
from orchestrator.metrics.wandb import Wandb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from state.trainer_state import TrainerState

# A W&B run that is there for the checkpoints alone tells nothing of the program's code and packages.
_NOTHING_ELSE = {"disable_git": True, "save_code": False, "x_save_requirements": False}


class WandbCheckpointHook(Hook):
    """Uploads each checkpoint of `folder` as a version of one artifact, with its facts as metadata.

    `wandb` is the run's W&B run, which its metrics go to; or a project, or entity/project: then a W&B run that the
    program has begun itself is joined, and otherwise one is begun. The environment says how (WANDB_MODE=offline,
    WANDB_BASE_URL, WANDB_API_KEY). `settings` are the run's settings as W&B shows them.
    """

    name = "wandb_checkpoint"
    max_lag = 1

    def __init__(self, folder: Path, wandb: Wandb | str, settings: Mapping[str, object] | None = None) -> None:
        self._folder = folder
        if isinstance(wandb, str):
            name, job = folder.parent.name, "train"
            wandb = Wandb(project=wandb, mode=None, joins_active=True, name=name, job_type=job, settings=_NOTHING_ELSE)
        self._wandb = wandb
        self.copies = Copies("Weights & Biases")
        self._settings = dict(settings or {})
        self._first_epoch = 0
        self._thread = FunctionThread("upload of artifacts")

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        self.copies.begin()
        self._wandb.hold(self)
        try:
            yield
        finally:
            try:
                await self._thread.call(self._wandb.leave, self)
            finally:
                self._thread.close()

    async def on_new_training_run(self, state: TrainerState) -> None:
        self._first_epoch = state.epoch

    async def on_checkpoint_committed(self, state: TrainerState) -> StateUpdate | None:
        path = local_path(state.latest_checkpoint_uri, self._folder)
        if path is None:
            return None
        with self.copies.copying(path):
            return StateUpdate(latest_wandb_uri=await self._thread.call(self._upload, path))

    def _upload(self, path: Path) -> str:
        import wandb

        run: Any = self._wandb.joined(
            RunInfo(
                run_id=self.run.run_id,
                run_dir=self._folder.parent,
                epoch=self._first_epoch,
                settings=self._settings,
                stop=self.run.stop,
            )
        )
        with hold(path):
            checkpoint = open_checkpoint(path)
            checkpoint.verify()
            manifest = checkpoint.manifest
            facts = {name: value for name, value in manifest.items() if name not in ("files", "checksum")}
            artifact = wandb.Artifact(f"{run.id}-checkpoint", type="checkpoint", metadata=facts)
            artifact.add_file(str(path / MANIFEST))
            for name in manifest["files"]:
                artifact.add_file(str(checkpoint.file(name)), name=name)  # copied, so that the folder may go afterwards
        aliases = ["latest", f"epoch-{checkpoint.epoch}"]
        logged = run.log_artifact(artifact, aliases=aliases)
        if run.offline:
            return Path(run.dir).parent.absolute().as_uri()
        logged.wait(timeout=_UPLOAD_SECONDS)
        return f"wandb-artifact:///{logged.qualified_name}"


_UPLOAD_SECONDS = 600
