"""Watches whether a run learns, and says so once when it does not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.included.learning_problems import (
    RESULT,
    VERDICT,
    ProblemDetector,
    Reading,
    problems_of,
    verdict_of,
)
from orchestrator.hooks.included.metrics_record import statistic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.config.settings import TrainerConfig
    from state.experience import ExperienceSpec
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator")


class LearningWatch(Hook):
    """Logs each problem that the statistics of a run with the settings `config` show, once until it is over.

    The problems that there are now, by kind, are the result `learning_problems`, and the result `learning` says in a
    few words whether the return has become better.
    """

    name = "learning_watch"

    def __init__(self, config: TrainerConfig) -> None:
        self._config = config
        self._detector = ProblemDetector(config)
        self._memory: Mapping[str, Any] = {}

    def state_dict(self) -> Mapping[str, object]:
        return self._detector.memory()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._memory = state

    async def on_new_training_run(self, state: TrainerState) -> None:
        # Without its memory, the first episodes of a resumed run are not those of an untrained policy.
        fresh = state.epoch == 0 and self._config.init_from is None
        self._detector = ProblemDetector(self._config, fresh=fresh)
        if self._memory:
            self._detector.recall(self._memory)

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
        for kind, text in self._detector.observe(reading(state)).items():
            _log.warning("learning (%s), epoch %d: %s", kind, state.epoch, text)
        results: dict[str, object] = {}
        if self._detector.current != (problems_of(state) or {}):
            results[RESULT] = dict(self._detector.current)
        if self._detector.verdict != verdict_of(state):
            results[VERDICT] = self._detector.verdict
        return StateUpdate(results=results) if results else None


def reading(state: TrainerState) -> Reading:
    """What the state at the end of an epoch says."""
    stats = state.loss_stats or {}
    return Reading(
        agent_step=state.agent_step,
        rows=None if state.experience is None else state.experience.spec.segments,
        returns=(state.rollout_stats or {}).get("episode_return", ()),
        entropy=statistic(stats, "entropy"),
        approx_kl=statistic(stats, "approx_kl"),
        clip_fraction=statistic(stats, "clip_fraction"),
        value_loss=statistic(stats, "value_loss"),
        explained_variance=stats.get("explained_variance"),
        gradient_norm=stats.get("gradient_norm"),
        continuous=state.experience is not None and _acts_with_numbers(state.experience.spec),
    )


def _acts_with_numbers(spec: ExperienceSpec) -> bool:
    return any(field.name == "action" and np.issubdtype(field.dtype, np.floating) for field in spec.fields)
