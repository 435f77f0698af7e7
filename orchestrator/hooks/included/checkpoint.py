"""Takes checkpoints while the training continues."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.checkpoints import CheckpointError
from orchestrator.config.error import nearest
from orchestrator.config.paths import PATH
from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.included.metrics_record import metrics, score_metrics
from orchestrator.workers.event_loop import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Mapping
    from pathlib import Path

    from orchestrator.checkpoints import CheckpointFolder
    from orchestrator.metrics.sink import Record
    from orchestrator.snapshots.checkpoint_files import CheckpointContent
    from state.eval_rewards import EvalRewardSummary
    from state.trainer_state import TrainerState


class CheckpointHook(Hook):
    """Commits a checkpoint every so many epochs, when one is asked for, and at the end of the training.

    Hashing and writing happen in a thread that waits for the disk, on the frozen policy. A checkpoint that cannot
    be written stops the run after its epoch. Scores that come later are written next to the checkpoint of the
    policy that they rate.
    """

    name = "checkpoint"
    max_lag = 1
    on_error = "stop"
    saves = True

    def __init__(
        self,
        folder: CheckpointFolder,
        every: int,
        parent: str | None = None,
        *,
        best_metric: str | None = None,
        expected: Collection[str] = (),
        others_may_score: bool = False,
    ) -> None:
        """`parent` names the checkpoint that the run resumes from. `best_metric` must be a metric of the first
        checkpoint or one of those `expected` from evaluations, and may be any score where `others_may_score`."""
        self.every = every or _NEVER
        self._folder = folder
        self._saved: object = None
        self._resumable_epoch = 0
        """The last that was saved with all that is needed to resume."""
        self._parent = parent
        self._best_metric = best_metric
        self._expected = expected
        self._others_may_score = others_may_score
        self._joined = 0
        """Scores that have found their checkpoints, if these are there."""
        self._awaited: frozenset[int] = frozenset()
        """Epochs whose checkpoints were not deleted, since scores might come."""

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        with ExitStack() as self._claim:
            yield

    async def on_new_training_run(self, state: TrainerState) -> None:
        await in_thread(self._claim.enter_context, self._folder.claim())

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
        return await self._save(state)

    async def on_training_end(self, state: TrainerState) -> StateUpdate | None:
        update = await self._save(state)
        late = self.run.eval_scores()
        if len(late) > self._joined or self._awaited:  # the last scores come after the last checkpoint
            await in_thread(self._join, late)
        return update

    async def _save(self, state: TrainerState) -> StateUpdate | None:
        if not state.epoch:
            return None
        if state.policy is None:
            raise RuntimeError(
                f"epoch {state.epoch} cannot be saved: hooks hold views of so many epochs that its state came without "
                f"the policy; drop states earlier or raise {PATH.collection.held_epochs}"
            )
        content = self.run.checkpoint_content(state)
        # At the end the epoch may be saved already, but not what hooks have made of it since.
        if content.identity == self._saved:
            return None
        if not content.facts["resumable"] and state.epoch == self._resumable_epoch:
            return None  # a failed run has no more of an epoch than was saved of it
        # The scores in the state are of an older policy, as a rule. Those of this one may come later: what may still
        # get some is not deleted.
        self._awaited = self.run.epochs_in_hand() if self._best_metric is not None else frozenset()
        scores = self.run.eval_scores()
        record = metrics(replace(state, eval_scores=scores.get(state.policy.version)), self.run.hook_statistics())
        path = await in_thread(self._commit, state.epoch, content, record, scores)
        self._saved = content.identity
        if content.facts["resumable"]:
            self._resumable_epoch = state.epoch
        self._parent = path.name
        self._check_best_metric(record, scores)
        return StateUpdate(latest_checkpoint_uri=path.absolute().as_uri())

    def _commit(
        self,
        epoch: int,
        content: CheckpointContent,
        record: Record,
        scores: Mapping[int, EvalRewardSummary],
    ) -> Path:
        facts = {**content.facts, "metrics": {name: value for name, value in record.items() if value is not None}}
        if len(scores) > self._joined:
            self._folder.score({version: score_metrics(one) for version, one in scores.items()})
            self._joined = len(scores)
        return self._folder.commit(
            epoch=epoch, facts=facts, files=content.files, parent=self._parent, awaited=self._awaited
        )

    def _join(self, scores: Mapping[int, EvalRewardSummary]) -> None:
        self._folder.score({version: score_metrics(one) for version, one in scores.items()})
        self._folder.prune()
        self._joined = len(scores)

    def _check_best_metric(self, record: Record, scores: Mapping[int, EvalRewardSummary]) -> None:
        """Raises CheckpointError for a `best_metric` that no checkpoint will ever have."""
        name = self._best_metric
        given = {*self._expected, *(one for summary in scores.values() for one in score_metrics(summary))}
        known = record.keys() | given
        of_scores = name is not None and (name.startswith("eval/") or name == "overview/score")
        if name is None or (name in known and not of_scores):
            return
        if name.startswith("rollout/") and not record.get("rollout/episodes"):
            return  # what episodes tell is known when the first has ended
        if of_scores and (name in given or (self._others_may_score and not scores)):
            return
        self._best_metric = None  # said once: the final checkpoint is committed all the same
        raise CheckpointError(
            f"{PATH.checkpoints.best_metric} = {name!r} is no metric that a checkpoint of this run has or will have: "
            f"{nearest(name, sorted(known - {name}))}; correct it and resume the run: its checkpoints are as they were"
        )


_NEVER = 2**62
"""Epochs between checkpoints when only the final one is wanted."""
