"""`orchestrator eval`: plays episodes with the policy of a checkpoint, and reports the scores."""

from __future__ import annotations

import logging
import statistics
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.checkpoints import find_checkpoint
from orchestrator.environments import Adaptation
from orchestrator.evaluation.plan import EvaluationPlan, evaluation_plans, spaces_of
from orchestrator.policies import build_policy
from orchestrator.snapshots.recorded_settings import read_settings
from orchestrator.workers.global_generators import seeded_global_generators
from state.eval_rewards import EvalRewardSummary
from state.stats_tracker import TEAM_RETURN

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from orchestrator.evaluation.evaluator import EpisodeScores

_log = logging.getLogger("orchestrator")


def evaluate_checkpoint(
    path: str | Path,
    *,
    episodes: int,
    environment: str | None = None,
    deterministic: bool | None = None,
    trust_code: bool = False,
) -> dict[str, object]:
    """Play `episodes` episodes with the policy of a checkpoint, or of a run's newest; blocks.

    By default in the environments that the run evaluated on, and with sampled or most likely actions as its
    configuration says. One environment gives a flat report; of several, `tasks` lists the reports, and
    `category_scores`, `avg_category_score` and `avg_simulation_score` sum them up. Raises CheckpointError,
    ConfigurationError (also where `path` is an address and its settings name code, unless `trust_code`), and
    InvalidEnvironment where an environment is none for the policy.
    """
    checkpoint = find_checkpoint(path)
    config = read_settings(checkpoint, path, trust_code=trust_code)
    plans = evaluation_plans(config)
    if environment is not None:
        without_tasks = replace(config, evaluation=replace(config.evaluation, tasks=()))
        plans = (evaluation_plans(without_tasks)[0].on(environment),)
    plans = [replace(plan, episodes=episodes) for plan in plans]
    if deterministic is not None:
        plans = [replace(plan, deterministic=deterministic) for plan in plans]
    spaces = spaces_of(config.environment, config.collection.environment_options, Adaptation.of(config))
    policy = build_policy(config.policy, spaces, config.seed, config.learning.discount)
    counters = {name: checkpoint.manifest[name] for name in ("epoch", "agent_step")}
    reports: list[dict[str, Any]] = []
    for plan in plans:
        checkpoint.load_into(policy)  # for each: a network may change its buffers by acting
        with seeded_global_generators(plan.seed), _one_thread():
            scores = plan.play_episodes(policy, _log.warning)
        reports.append(_report(plan, scores))
    if len(reports) == 1:
        return {"checkpoint": str(checkpoint.path), **counters, **reports[0]}
    summary = EvalRewardSummary.from_simulations(
        {plan.key: float(report["return_mean"]) for plan, report in zip(plans, reports, strict=True)}
    )
    names = [{"category": plan.key[0], "name": plan.key[1]} for plan in plans]
    return {
        "checkpoint": str(checkpoint.path),
        **counters,
        "tasks": [name | report for name, report in zip(names, reports, strict=True)],
        "category_scores": dict(summary.category_scores),
        "avg_category_score": summary.avg_category_score,
        "avg_simulation_score": summary.avg_simulation_score,
    }


@contextmanager
def _one_thread() -> Generator[None]:
    """For a few rows, torch's threads cost more than they save; and so it is as in an evaluation during training."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _report(plan: EvaluationPlan, scores: EpisodeScores) -> dict[str, Any]:
    for text in scores.warnings.values():
        _log.warning("%s", text)
    agents = scores.of_agents
    return {
        "environment": plan.environment,
        "episodes": scores.games,
        "actions": "most likely" if plan.deterministic else "sampled",
        "return_mean": scores.mean_return,
        "return_std": statistics.pstdev(scores.returns),
        "return_min": min(scores.returns),
        "return_max": max(scores.returns),
        "length_mean": statistics.fmean(scores.lengths),
        **{f"return_mean/{of}" if of != TEAM_RETURN else "team_return_mean": mean for of, mean in agents.items()},
    }
