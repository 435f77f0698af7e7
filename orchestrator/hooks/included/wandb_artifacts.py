"""Uploads committed checkpoints to Weights & Biases as artifacts while the training goes on."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.checkpoint import open_checkpoint
from orchestrator.checkpoints.find import local_path
from orchestrator.checkpoints.locks import hold
from orchestrator.checkpoints.manifest import MANIFEST
from orchestrator.hooks.function_thread import FunctionThread
from orchestrator.hooks.hook import Hook, StateUpdate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator.hooks")


class WandbCheckpointHook(Hook):
    """Uploads each checkpoint of `folder` as a version of one artifact, with its facts as metadata.

    `project` is a project or entity/project. It joins a W&B run of this process that is active, and otherwise
    starts one of its own. The environment says how (WANDB_MODE=offline, WANDB_BASE_URL, WANDB_API_KEY).
    """

    name = "wandb_checkpoint"
    max_lag = 1

    def __init__(self, folder: Path, project: str) -> None:
        self._folder = folder
        self._entity, _, self._project = project.rpartition("/")
        self._thread = FunctionThread("upload of artifacts")
        self._run: Any = None
        self._own = False

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            if self._own:
                await self._thread.call(self._finish)
            self._thread.close()

    async def on_checkpoint_committed(self, state: TrainerState) -> StateUpdate | None:
        path = local_path(state.latest_checkpoint_uri, self._folder)
        if path is None:
            return None
        return StateUpdate(latest_wandb_uri=await self._thread.call(self._upload, path))

    def _upload(self, path: Path) -> str:
        import wandb

        run = self._run = self._run or self._start()
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

    def _start(self) -> Any:
        import wandb

        if wandb.run is not None:
            return wandb.run
        run_dir = self._folder.parent
        self._own = True
        # Nothing of the process beside it: neither its output, nor its code or packages, nor figures of the machine.
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        return wandb.init(
            project=self._project,
            entity=self._entity or None,
            name=run_dir.name,
            dir=str(run_dir),
            job_type="train",
            settings=settings,
        )

    def _finish(self) -> None:
        self._run.finish()


_UPLOAD_SECONDS = 600
