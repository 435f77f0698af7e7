"""The hooks that a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.evaluation import EvaluationPlan
from orchestrator.hooks.checkpoint import CheckpointHook
from orchestrator.hooks.evaluation import EvaluationHook
from orchestrator.hooks.metrics import MetricsHook
from orchestrator.hooks.trace import TraceHook

if TYPE_CHECKING:
    from orchestrator.config import TrainerConfig
    from orchestrator.hooks.hook import Hook


def default_hooks(config: TrainerConfig) -> list[Hook]:
    """Evaluation where it is switched on; checkpoints, metrics and trace where the run has a folder."""
    hooks: list[Hook] = []
    if config.evaluation.every:
        hooks.append(EvaluationHook(EvaluationPlan.of(config), config.evaluation.every))
    if config.run_dir is not None and config.checkpoints.enabled:
        hooks.append(CheckpointHook(config.run_dir / "checkpoints", config.checkpoints.every, config.checkpoints.keep))
    if config.run_dir is not None and config.metrics.jsonl:
        hooks.append(MetricsHook(config.run_dir / "metrics.jsonl"))
    if config.run_dir is not None and config.metrics.trace:
        hooks.append(TraceHook(config.run_dir / "trace.json", config.metrics.trace_megabytes * 1_000_000))
    return hooks
