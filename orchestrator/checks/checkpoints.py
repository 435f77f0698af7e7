"""What can be known to be wrong with the settings of checkpoints before a run begins."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from orchestrator.checkpoints.objects import address_problem
from orchestrator.config.paths import PATH, problem_with
from orchestrator.config.reads import reads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.error import Problem
    from orchestrator.config.settings import TrainerConfig


@reads(
    PATH.checkpoints.enabled,
    PATH.checkpoints.keep_best,
    PATH.checkpoints.best_metric,
    PATH.checkpoints.upload,
    PATH.checkpoints.wandb_project,
    PATH.metrics.wandb,
    PATH.metrics.wandb_project,
)
def checkpoint_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Rules without what they need, addresses that cannot be right, extras that are not installed."""
    settings = config.checkpoints
    if settings.keep_best and settings.best_metric is None:
        expected = f"the metric by which checkpoints are compared, because {PATH.checkpoints.keep_best} is set"
        cure = "name one of metrics.jsonl, such as rollout/recent_return"
        yield problem_with(config, PATH.checkpoints.best_metric, expected=expected, cure=cure)
    address, project = settings.upload, settings.wandb_project
    if address is not None:
        yield from _copy_problems(config, PATH.checkpoints.upload, address_problem(address), "obstore", "remote")
    if project is not None:
        yield from _copy_problems(config, PATH.checkpoints.wandb_project, _project_problem(project), "wandb", "wandb")


def _copy_problems(
    config: TrainerConfig, setting: object, problem: str | None, module: str, extra: str
) -> Iterator[Problem]:
    # Not the value itself where that is wrong: what is wrong may be that it holds a secret.
    hidden = "(not shown)"
    if problem is not None:
        yield problem_with(config, setting, value=hidden, expected=problem, cure="correct it, or leave it out")
    elif find_spec(module) is None:
        cure = f"pip install 'async-rl-orchestrator[{extra}]'"
        yield problem_with(config, setting, expected=f"the extra `{extra}` to be installed", cure=cure)
    elif extra == "wandb":
        yield from _project_of_metrics(config)
    if not config.checkpoints.enabled:
        cure = f"set {PATH.checkpoints.enabled} to true, or leave this out"
        yield problem_with(config, setting, value=hidden, expected="checkpoints to be written", cure=cure)


def _project_problem(project: str) -> str | None:
    parts = project.split("/")
    return None if len(parts) <= 2 and all(part.strip() for part in parts) else "a project, or entity/project"


def _project_of_metrics(config: TrainerConfig) -> Iterator[Problem]:
    project, metrics = config.checkpoints.wandb_project, config.metrics
    if project is None or metrics.wandb == "off" or metrics.wandb_project is None:
        return
    from orchestrator.metrics.wandb import common_project

    if common_project(metrics.wandb_project, project) is None:
        expected = f"{PATH.metrics.wandb_project}, which is {metrics.wandb_project!r}: a run has one W&B run"
        cure = "name the same project, or leave one of them out"
        yield problem_with(config, PATH.checkpoints.wandb_project, expected=expected, cure=cure)
