"""What an evaluation is made of: environments with names and categories, episodes, seeds; for hooks and for the
command line alike."""

from __future__ import annotations

import statistics
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.environments import make_vector
from orchestrator.evaluator import EpisodeScores, evaluate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from orchestrator.config import TrainerConfig
    from orchestrator.policies import Policy
    from state.policy_snapshot import PolicySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """Episodes to play in an environment, `copies` side by side."""

    environment: str
    episodes: int
    copies: int
    seed: int
    deterministic: bool
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    category: str = "training"

    @classmethod
    def of(cls, config: TrainerConfig) -> EvaluationPlan:
        """As a run's configuration says."""
        settings = config.evaluation
        return cls(
            environment=config.environment,
            episodes=settings.episodes,
            copies=min(settings.environments, settings.episodes),
            seed=settings.seed,
            deterministic=settings.deterministic,
            options=config.collection.environment_options,
        )

    def play(self, policy: Policy) -> EpisodeScores:
        """Play the episodes. Blocks, and computes."""
        with ExitStack() as cleanup:
            environment = cleanup.enter_context(
                closing(make_vector(self.environment, self.copies, self.options, "sync"))
            )
            return evaluate(policy, [environment], self.episodes, [self.seed], self.deterministic)[0]


class EvaluatorService:
    """What an evaluator worker holds: the policy is built once and then given the weights of each snapshot."""

    def __init__(self, plan: EvaluationPlan) -> None:
        self._plan = plan
        self._policy: Policy | None = None

    def evaluate(self, snapshot: PolicySnapshot) -> dict[tuple[str, str], float]:
        """Mean returns by category and environment."""
        self._policy = snapshot.load(self._policy)  # pyright: ignore[reportAttributeAccessIssue]
        assert self._policy is not None
        return {(self._plan.category, self._plan.environment): self._plan.play(self._policy).mean_return}


def evaluate_checkpoint(
    path: Path, *, episodes: int, environment: str | None = None, deterministic: bool | None = None
) -> dict[str, object]:
    """Play `episodes` episodes with the policy of a checkpoint, or of a run's newest; blocks.

    By default in the environment that it was trained in, and with sampled or most likely actions as the run's
    configuration says. Raises CheckpointError, ConfigurationError, and ValueError where the policy does not fit.
    """
    from dataclasses import replace

    from orchestrator.checkpoints import find_checkpoint
    from orchestrator.config_file import read_config
    from orchestrator.policies import Spaces, build_policy

    checkpoint = find_checkpoint(path)
    config = read_config(checkpoint.path.parent.parent / "config.toml")
    plan = EvaluationPlan.of(config)
    plan = replace(
        plan,
        episodes=episodes,
        copies=min(config.evaluation.environments, episodes),
        environment=plan.environment if environment is None else environment,
        deterministic=plan.deterministic if deterministic is None else deterministic,
    )
    with closing(make_vector(plan.environment, 1, plan.options, "sync")) as vector:
        spaces = Spaces(vector.observation_space, vector.action_space)
    policy = build_policy(config.policy, spaces, config.seed, config.learning.discount)
    checkpoint.load_into(policy)
    scores = plan.play(policy)
    return {
        "checkpoint": str(checkpoint.path),
        "environment": plan.environment,
        "epoch": checkpoint.manifest["epoch"],
        "agent_step": checkpoint.manifest["agent_step"],
        "episodes": len(scores.returns),
        "actions": "most likely" if plan.deterministic else "sampled",
        "return_mean": scores.mean_return,
        "return_std": statistics.pstdev(scores.returns),
        "return_min": min(scores.returns),
        "return_max": max(scores.returns),
        "length_mean": statistics.fmean(scores.lengths),
    }
