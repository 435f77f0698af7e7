"""An evaluator behind a worker's messages."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING

from orchestrator.workers.global_generators import seeded_global_generators

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from orchestrator.evaluation.plan import EvaluationPlan
    from orchestrator.policies import Policy
    from state.policy_snapshot import PolicySnapshot


Scores = dict[tuple[str, str], float]


class EvaluatorService:
    """What an evaluator worker holds: the policy is built once and then given the weights of each snapshot."""

    def __init__(self, plans: Sequence[EvaluationPlan]) -> None:
        self._plans = tuple(plans)
        self._policy: Policy | None = None
        self._warnings: dict[tuple[str, str], str] = {}
        # In a thread of the host, the generators are those of the whole program.
        self._own_process = threading.current_thread() is threading.main_thread()

    def evaluate(self, snapshot: PolicySnapshot) -> tuple[Scores, Scores]:
        """Mean returns by category and name, and those of agents as `EvalRewardSummary.agent_scores`."""
        scores: Scores = {}
        of_agents: Scores = {}
        for plan in self._plans:
            # Loaded for each plan: a network may change its buffers by acting.
            policy = self._load(snapshot)
            with self._seeded(plan.seed):
                played = plan.play_episodes(policy)
            category, name = plan.key
            scores[category, name] = played.mean_return
            of_agents |= {(category, f"{name}/{of}"): mean for of, mean in played.of_agents.items()}
            for about, text in played.warnings.items():
                self._warnings.setdefault((plan.environment, about), text)
        return scores, of_agents

    def warnings(self) -> dict[tuple[str, str], str]:
        """What the user should know of the environments, by environment and what it is about, of all evaluations."""
        return self._warnings

    def record(self, snapshot: PolicySnapshot, index: int, path: Path) -> None:
        """Play an episode of the plan at `index` and write it to `path` as a video."""
        from orchestrator.evaluation.video import record_episode

        plan, policy = self._plans[index], self._load(snapshot)
        with self._seeded(plan.seed):
            record_episode(policy, plan, path)

    def _seeded(self, seed: int) -> AbstractContextManager[None]:
        """Environments may draw from the process's generators, and each evaluation is to be the same."""
        return seeded_global_generators(seed) if self._own_process else nullcontext()

    def _load(self, snapshot: PolicySnapshot) -> Policy:
        self._policy = snapshot.load(self._policy)  # pyright: ignore[reportAttributeAccessIssue]
        assert self._policy is not None
        return self._policy
