"""Evaluates the frozen policy in a separate worker while the training continues."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from orchestrator.evaluation.evaluator import CUT
from orchestrator.evaluation.service import EvaluatorService
from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.workers.worker import WorkerCrashed
from state.eval_rewards import EvalRewardSummary

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from orchestrator.evaluation.plan import EvaluationPlan
    from orchestrator.evaluation.service import Scores
    from orchestrator.workers.worker import Worker
    from state.policy_snapshot import PolicySnapshot
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator.hooks")

VIDEO_SECONDS = 50.0
"""What all recordings of one evaluation may take: less than the end of a run waits for its last scores."""


class EvaluationHook(Hook):
    """Scores the newest policy every so many epochs; a newer request replaces one that waits.

    The scores say which policy version they speak of. A crash of the worker is retried once, in a new one, and then
    reported; the training does not notice. The first evaluation in every `video_every` epochs (0: none) also
    records an episode of each plan, as `videos/<epoch>-<name>.mp4` in the run's folder; the paths are the result
    `videos`, by `category/name`. A recording that fails is reported and changes no score. What there is to warn of
    an environment is logged once; of the one that is `trained_on`, of which the collectors tell, only that its episodes
    were cut.
    """

    name = "evaluation"
    max_lag = 1
    retries = 1
    transient = (WorkerCrashed,)

    def __init__(
        self, plans: Sequence[EvaluationPlan], every: int, *, video_every: int = 0, trained_on: str | None = None
    ) -> None:
        self.every = every
        self._plans = tuple(plans)
        self._video_every = video_every
        self._video_epoch = 0
        self._trained_on = trained_on
        self._warned: set[tuple[str, str]] = set()
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
        answer: tuple[Scores, Scores] = await self._call("evaluate", state.policy)
        scores, of_agents = answer
        await self._warn()
        summary = EvalRewardSummary.from_simulations(
            scores, agent_scores=of_agents, policy_version=state.policy.version, epoch=state.epoch
        )
        videos = await self._record(state.policy, state.epoch) if self._wants_video(state.epoch) else {}
        return StateUpdate(eval_scores=summary, results={"videos": videos} if videos else {})

    async def _warn(self) -> None:
        warnings: dict[tuple[str, str], str] = await self._call("warnings")
        for (environment, about), text in warnings.items():
            told = environment == self._trained_on and about != CUT
            if not told and (environment, about) not in self._warned:
                self._warned.add((environment, about))
                _log.warning("%s", text)

    def state_dict(self) -> Mapping[str, object]:
        return {"video_epoch": self._video_epoch}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        epoch = state.get("video_epoch")
        self._video_epoch = epoch if isinstance(epoch, int) else 0

    async def _call(self, method: str, *args: object) -> Any:
        """Ask the worker, a new one if there is none. One that crashed, or may still be at work, is given up."""
        finished = False
        try:
            if self._worker is None:
                self._worker = await self.run.open_worker("evaluator", EvaluatorService, self._plans)
            answer = await self._worker.call(method, *args)
            finished = True
            return answer
        except Exception as error:
            finished = not isinstance(error, WorkerCrashed)
            raise
        finally:
            if not finished:
                await self._close()

    def _wants_video(self, epoch: int) -> bool:
        if not self._video_every or self.run.run_dir is None:
            return False
        due = epoch // self._video_every > self._video_epoch // self._video_every
        self._video_epoch = max(self._video_epoch, epoch) if due else self._video_epoch
        return due

    async def _record(self, policy: PolicySnapshot, epoch: int) -> dict[str, str]:
        """The paths of the videos that were made, by `category/name`."""
        from orchestrator.evaluation.video import video_names

        assert self.run.run_dir is not None
        folder = self.run.run_dir.absolute() / "videos"
        videos: dict[str, str] = {}
        with anyio.move_on_after(VIDEO_SECONDS) as scope:
            for index, (plan, name) in enumerate(zip(self._plans, video_names(self._plans), strict=True)):
                path = folder / f"{epoch:08d}-{name}.mp4"
                task = "/".join(plan.key)
                try:
                    await self._call("record", policy, index, path)
                except Exception as error:
                    _log.warning("no video of task %r after epoch %d: %s", task, epoch, error)
                else:
                    videos[task] = str(path)
        if scope.cancelled_caught:
            _log.warning("the videos after epoch %d took longer than %g s and were given up", epoch, VIDEO_SECONDS)
        return videos

    async def _close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.aclose(0.5)
