"""What can be known to be wrong with the settings of checkpoints before a run begins."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from orchestrator.checkpoints.objects import address_problem
from orchestrator.config.error import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.settings import TrainerConfig

CHECKED_TOGETHER = ("enabled", "keep_best", "best_metric", "upload", "wandb_project")
"""The settings that `checkpoint_problems` relies on: each must be right in itself."""


def checkpoint_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Rules without what they need, addresses that cannot be right, extras that are not installed."""
    settings = config.checkpoints
    if settings.keep_best and settings.best_metric is None:
        expected = "the metric by which checkpoints are compared, because checkpoints.keep_best is set"
        cure = "name one of metrics.jsonl, such as rollout/recent_return"
        yield Problem(field="checkpoints.best_metric", value=None, expected=expected, cure=cure)
    copies = {
        "upload": (settings.upload, "obstore", "remote"),
        "wandb_project": (settings.wandb_project, "wandb", "wandb"),
    }
    for name, (value, module, extra) in copies.items():
        if value is None:
            continue
        field = f"checkpoints.{name}"
        problem = address_problem(value) if name == "upload" else _project_problem(value)
        if problem is not None:
            # Not the value itself: what is wrong with it may be that it holds a secret.
            yield Problem(field=field, value="(not shown)", expected=problem, cure="correct it, or leave it out")
        elif find_spec(module) is None:
            cure = f"pip install 'async-rl-orchestrator[{extra}]'"
            yield Problem(field=field, value=value, expected=f"the extra `{extra}` to be installed", cure=cure)
        elif name == "wandb_project":
            yield from _project_of_metrics(value, config)
        if not settings.enabled:
            cure = "set checkpoints.enabled to true, or leave this out"
            yield Problem(field=field, value="(not shown)", expected="checkpoints to be written", cure=cure)


def _project_problem(project: str) -> str | None:
    parts = project.split("/")
    return None if len(parts) <= 2 and all(part.strip() for part in parts) else "a project, or entity/project"


def _project_of_metrics(project: str, config: TrainerConfig) -> Iterator[Problem]:
    metrics = config.metrics
    if metrics.wandb == "off" or metrics.wandb_project is None:
        return
    from orchestrator.metrics.wandb import common_project

    if common_project(metrics.wandb_project, project) is None:
        expected = f"metrics.wandb_project, which is {metrics.wandb_project!r}: a run has one W&B run"
        cure = "name the same project, or leave one of them out"
        yield Problem(field="checkpoints.wandb_project", value=project, expected=expected, cure=cure)
