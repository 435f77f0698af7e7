"""The hooks that a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from orchestrator.checkpoints import CheckpointFolder, retention_of
from orchestrator.evaluation import evaluation_plans
from orchestrator.hooks.checkpoint import CheckpointHook
from orchestrator.hooks.evaluation import EvaluationHook
from orchestrator.hooks.metrics import MetricsHook
from orchestrator.hooks.trace import TraceHook
from orchestrator.hooks.upload import UploadHook
from orchestrator.hooks.wandb_artifacts import WandbCheckpointHook

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.config import TrainerConfig
    from orchestrator.hooks.hook import Hook


def default_hooks(config: TrainerConfig, resumed: Path | None = None) -> list[Hook]:
    """Evaluation where it is switched on; checkpoints, copies of them, metrics and trace where the run has a folder.
    `resumed` is the checkpoint that the run goes on from."""
    hooks: list[Hook] = []
    if config.evaluation.every:
        settings = config.evaluation
        hooks.append(EvaluationHook(evaluation_plans(config), settings.every, video_every=settings.video_every))
    if config.run_dir is not None and config.checkpoints.enabled:
        folder = CheckpointFolder(
            config.run_dir / "checkpoints",
            retention=retention_of(config.checkpoints),
            protect=[] if resumed is None else [resumed],
        )
        parent = None if resumed is None else resumed.name
        hooks.append(CheckpointHook(folder, config.checkpoints.every, parent))
        if config.checkpoints.upload is not None:
            address = f"{config.checkpoints.upload.rstrip('/')}/{quote(config.run_dir.resolve().name)}"
            hooks.append(UploadHook(folder.path, address))
        if config.checkpoints.wandb_project is not None:
            hooks.append(WandbCheckpointHook(folder.path, config.checkpoints.wandb_project))
    if config.run_dir is not None and config.metrics.jsonl:
        hooks.append(MetricsHook(config.run_dir / "metrics.jsonl"))
    if config.run_dir is not None and config.metrics.trace:
        hooks.append(TraceHook(config.run_dir / "trace.json", config.metrics.trace_megabytes * 1_000_000))
    return hooks
