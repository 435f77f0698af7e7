"""An evaluator behind a worker's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from orchestrator.evaluation.plan import EvaluationPlan
    from orchestrator.policies import Policy
    from state.policy_snapshot import PolicySnapshot


class EvaluatorService:
    """What an evaluator worker holds: the policy is built once and then given the weights of each snapshot."""

    def __init__(self, plans: Sequence[EvaluationPlan]) -> None:
        self._plans = tuple(plans)
        self._policy: Policy | None = None

    def evaluate(self, snapshot: PolicySnapshot) -> dict[tuple[str, str], float]:
        """Mean returns by category and name."""
        # Loaded for each plan: a network may change its buffers by acting.
        return {plan.key: plan.play(self._load(snapshot)).mean_return for plan in self._plans}

    def record(self, snapshot: PolicySnapshot, index: int, path: Path) -> None:
        """Play an episode of the plan at `index` and write it to `path` as a video."""
        from orchestrator.evaluation.video import record_episode

        record_episode(self._load(snapshot), self._plans[index], path)

    def _load(self, snapshot: PolicySnapshot) -> Policy:
        self._policy = snapshot.load(self._policy)  # pyright: ignore[reportAttributeAccessIssue]
        assert self._policy is not None
        return self._policy
