"""What an evaluation is made of: environments with names and categories, episodes, seeds; for hooks and for the
command line alike."""

from __future__ import annotations

import statistics
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.environments import InvalidEnvironment, VectorEnvironment, make_vector
from orchestrator.environments.compatibility import space_differences
from orchestrator.evaluation.evaluator import EpisodeScores, evaluate
from orchestrator.policies import Spaces, build_policy
from state.eval_rewards import EvalRewardSummary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.policies import Policy
    from state.policy_snapshot import PolicySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """Episodes to play in an environment, at most `copies` side by side."""

    environment: str
    episodes: int
    copies: int
    seed: int
    deterministic: bool
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    category: str = "training"
    name: str = ""
    """Empty: that of the environment."""

    @property
    def key(self) -> tuple[str, str]:
        """Category and name."""
        return self.category, self.name or self.environment

    def play(self, policy: Policy) -> EpisodeScores:
        """Play the episodes, with the environment's own rewards and the policy's normalisation as it is.

        Blocks, and computes. Raises InvalidEnvironment where the policy was made for other spaces.
        """
        # New copies each time: what an environment keeps beside its seed would make the scores depend on the last ones.
        copies = min(self.copies, self.episodes)
        with closing(make_vector(self.environment, copies, self.options, "sync")) as environment:
            check_spaces(policy.spaces, environment)
            return evaluate(policy, [environment], self.episodes, [self.seed], self.deterministic)[0]

    def on(self, environment: str | None) -> EvaluationPlan:
        """The same in another environment, to which the options do not apply; None: in this one."""
        if environment in (None, self.environment):
            return self
        return replace(self, environment=environment, options={})


def evaluation_plans(config: TrainerConfig) -> tuple[EvaluationPlan, ...]:
    """What a run's configuration asks for: its tasks, or the environment of the training."""
    settings = config.evaluation
    training = EvaluationPlan(
        environment=config.environment,
        episodes=settings.episodes,
        copies=settings.environments,
        seed=settings.seed,
        deterministic=settings.deterministic,
        options=config.collection.environment_options,
    )
    if not settings.tasks:
        return (training,)
    plans: list[EvaluationPlan] = []
    for task in settings.tasks:
        own = {name: getattr(task, name) for name in ("options", "episodes", "seed", "deterministic")}
        changes: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        plan = training.on(task.environment)
        plans.append(replace(plan, name=task.name or plan.environment, category=task.category, **changes))
    return tuple(plans)


def spaces_of(environment: str, options: Mapping[str, object]) -> Spaces:
    """What an agent sees and does in an environment. Makes one. Raises InvalidEnvironment."""
    with closing(make_vector(environment, 1, options, "sync")) as vector:
        return Spaces(vector.observation_space, vector.action_space)


def check_spaces(needed: Spaces, environment: VectorEnvironment) -> None:
    """Raises InvalidEnvironment if a policy for the spaces `needed` cannot act in `environment`."""
    differences = differing_spaces(needed, Spaces(environment.observation_space, environment.action_space))
    if differences:
        raise InvalidEnvironment(
            f"environment {environment.name!r} does not fit the policy, which was made for other spaces: {differences}"
        )


def differing_spaces(needed: Spaces, found: Spaces) -> str:
    """What keeps a policy for the spaces `needed` from those `found`; empty where nothing does."""
    differences = [f"observations {text}" for text in space_differences(needed.observation, found.observation)]
    differences += [f"actions {text}" for text in space_differences(needed.action, found.action)]
    return "; ".join(differences)


class EvaluatorService:
    """What an evaluator worker holds: the policy is built once and then given the weights of each snapshot."""

    def __init__(self, plans: Sequence[EvaluationPlan]) -> None:
        self._plans = tuple(plans)
        self._policy: Policy | None = None

    def evaluate(self, snapshot: PolicySnapshot) -> dict[tuple[str, str], float]:
        """Mean returns by category and name."""
        policy = self._load(snapshot)
        return {plan.key: plan.play(policy).mean_return for plan in self._plans}

    def record(self, snapshot: PolicySnapshot, index: int, path: Path) -> None:
        """Play an episode of the plan at `index` and write it to `path` as a video."""
        from orchestrator.evaluation.video import record_episode

        record_episode(self._load(snapshot), self._plans[index], path)

    def _load(self, snapshot: PolicySnapshot) -> Policy:
        self._policy = snapshot.load(self._policy)  # pyright: ignore[reportAttributeAccessIssue]
        assert self._policy is not None
        return self._policy


def evaluate_checkpoint(
    path: str | Path, *, episodes: int, environment: str | None = None, deterministic: bool | None = None
) -> dict[str, object]:
    """Play `episodes` episodes with the policy of a checkpoint, or of a run's newest; blocks.

    By default in the environments that the run evaluated on, and with sampled or most likely actions as its
    configuration says. One environment gives a flat report; of several, `tasks` lists the reports, and
    `category_scores`, `avg_category_score` and `avg_simulation_score` sum them up. Raises CheckpointError,
    ConfigurationError, and InvalidEnvironment where an environment is none for the policy.
    """
    from orchestrator.checkpoints import find_checkpoint
    from orchestrator.snapshots.training_capture import read_config_of

    checkpoint = find_checkpoint(path)
    config = read_config_of(checkpoint)
    plans = evaluation_plans(config)
    if environment is not None:
        without_tasks = replace(config, evaluation=replace(config.evaluation, tasks=()))
        plans = (evaluation_plans(without_tasks)[0].on(environment),)
    plans = [replace(plan, episodes=episodes) for plan in plans]
    if deterministic is not None:
        plans = [replace(plan, deterministic=deterministic) for plan in plans]
    spaces = spaces_of(config.environment, config.collection.environment_options)
    policy = build_policy(config.policy, spaces, config.seed, config.learning.discount)
    checkpoint.load_into(policy)
    counters = {name: checkpoint.manifest[name] for name in ("epoch", "agent_step")}
    reports = [_report(plan, plan.play(policy)) for plan in plans]
    if len(reports) == 1:
        return {"checkpoint": str(checkpoint.path), **counters, **reports[0]}
    scores = EvalRewardSummary.from_simulations(
        {plan.key: float(report["return_mean"]) for plan, report in zip(plans, reports, strict=True)}
    )
    names = [{"category": plan.key[0], "name": plan.key[1]} for plan in plans]
    return {
        "checkpoint": str(checkpoint.path),
        **counters,
        "tasks": [name | report for name, report in zip(names, reports, strict=True)],
        "category_scores": dict(scores.category_scores),
        "avg_category_score": scores.avg_category_score,
        "avg_simulation_score": scores.avg_simulation_score,
    }


def _report(plan: EvaluationPlan, scores: EpisodeScores) -> dict[str, Any]:
    return {
        "environment": plan.environment,
        "episodes": len(scores.returns),
        "actions": "most likely" if plan.deterministic else "sampled",
        "return_mean": scores.mean_return,
        "return_std": statistics.pstdev(scores.returns),
        "return_min": min(scores.returns),
        "return_max": max(scores.returns),
        "length_mean": statistics.fmean(scores.lengths),
    }
