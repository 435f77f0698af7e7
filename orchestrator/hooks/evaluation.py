"""Evaluates the frozen policy in a worker of its own while the training goes on."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from orchestrator.evaluation import EvaluationPlan, EvaluatorService
from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.workers import WorkerCrashed
from state.eval_rewards import EvalRewardSummary

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from orchestrator.workers import Worker
    from state.trainer_state import TrainerState


class EvaluationHook(Hook):
    """Scores the newest policy every so many epochs; a newer request replaces one that waits.

    A crash of the worker is retried once, in a new one, and then reported; the training does not notice.
    """

    name = "evaluation"
    max_lag = 1
    retries = 1
    transient = (WorkerCrashed,)

    def __init__(self, plan: EvaluationPlan, every: int) -> None:
        self.every = every
        self._plan = plan
        self._worker: Worker | None = None

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self._close()

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
        if state.policy is None:
            return None
        try:
            if self._worker is None:
                self._worker = await self.run.open_worker("evaluator", EvaluatorService, self._plan)
            scores: dict[tuple[str, str], float] = await self._worker.call("evaluate", state.policy)
        except WorkerCrashed:
            await self._close()
            raise
        return StateUpdate(
            eval_scores=EvalRewardSummary.from_simulations(
                scores, policy_version=state.policy.version, epoch=state.epoch
            )
        )

    async def _close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.aclose(0.5)
