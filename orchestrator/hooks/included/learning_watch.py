"""Watches whether a run learns, and says so once when it does not."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.collection.experience_fields import OBSERVATION
from orchestrator.environments.agents import policies_in
from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.included.learning_competition import Competition, returns_by_type
from orchestrator.hooks.included.learning_problems import (
    KINDS,
    OF_THE_RUN,
    RESULT,
    VERDICT,
    ProblemDetector,
    Reading,
    problems_of,
    verdict_of,
)
from orchestrator.hooks.included.metrics_record import statistic
from orchestrator.workers.event_loop import in_thread
from state.stats_tracker import EPISODE_RETURN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from orchestrator.config.settings import TrainerConfig
    from state.experience import ExperienceSpec
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator")


_RUN = ""
"""The name of what is looked at of all agents together."""
COMPETING = "agents compete"
"""The verdict where returns do not tell."""


class LearningWatch(Hook):
    """Logs each problem that the statistics of a run with the settings `config` show, once until it is over.

    The problems that there are now, by kind, are the result `learning_problems`, and the result `learning` says in a
    few words whether the return has become better. Where types of agents have policies of their own, each is looked at
    for itself, and the texts name it.
    """

    name = "learning_watch"

    def __init__(self, config: TrainerConfig) -> None:
        self._config = config
        self._fresh = True
        self._detectors: dict[str, ProblemDetector] = {}
        self._competition = Competition()
        self._one_observation = True
        """Nothing else has been observed so far."""
        self._memory: Mapping[str, Any] = {}

    def state_dict(self) -> Mapping[str, object]:
        detectors = {name: detector.memory() for name, detector in self._detectors.items()}
        if not detectors:
            return {}
        memory = {"detectors": detectors, "competition": self._competition.memory()}
        return memory | {"one_observation": self._one_observation}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # An earlier release had one detector.
        self._memory = state if "detectors" in state or not state else {"detectors": {_RUN: state}}

    async def on_new_training_run(self, state: TrainerState) -> None:
        # Without its memory, the first episodes of a resumed run are not those of an untrained policy.
        self._fresh = state.epoch == 0 and self._config.init_from is None
        self._detectors = {}
        self._competition = Competition()
        if "competition" in self._memory:
            self._competition.recall(self._memory["competition"])
        self._one_observation = self._memory.get("one_observation", state.epoch == 0)
        self._detector(_RUN)

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
        self._competition.add(state.rollout_stats or {})
        competing = self._competition.found
        if self._one_observation and state.experience is not None:
            # Where observations are large and do not change, all of them are compared.
            self._one_observation = await in_thread(has_one_observation, state.experience)
        of_run = {"competing": competing, "one_observation": self._one_observation}
        for name in (_RUN, *policies_in(state.loss_stats or {})):
            found = self._detector(name).observe(replace(reading(state, name), **of_run))
            for kind, text in found.items():
                _log.warning("learning (%s), epoch %d: %s", kind, state.epoch, _of(name, text))
        current = self._current()
        verdict = COMPETING if competing else self._detector(_RUN).verdict
        results: dict[str, object] = {}
        if current != (problems_of(state) or {}):
            results[RESULT] = current
        if verdict != verdict_of(state):
            results[VERDICT] = verdict
        return StateUpdate(results=results) if results else None

    def _detector(self, name: str) -> ProblemDetector:
        """That of a policy, or of the whole run."""
        if name not in self._detectors:
            own = tuple(kind for kind in KINDS if kind not in OF_THE_RUN)
            kinds = own if name != _RUN else OF_THE_RUN if self._config.policy.by_type else KINDS
            detector = ProblemDetector(self._config, fresh=self._fresh, kinds=kinds, policy=name)
            memory = self._memory.get("detectors", {})
            if name in memory:
                detector.recall(memory[name])
            self._detectors[name] = detector
        return self._detectors[name]

    def _current(self) -> dict[str, str]:
        texts: dict[str, list[str]] = {}
        for name, detector in self._detectors.items():
            for kind, text in detector.current.items():
                texts.setdefault(kind, []).append(_of(name, text))
        return {kind: "; ".join(of) for kind, of in texts.items()}


def reading(state: TrainerState, policy: str = _RUN) -> Reading:
    """What the state at the end of an epoch says, of all agents or of those of a policy."""
    stats = state.loss_stats or {}
    of = None if policy == _RUN else policy
    return Reading(
        agent_step=state.agent_step,
        rows=None if state.experience is None else state.experience.spec.segments,
        returns=_returns(state, policy),
        entropy=statistic(stats, "entropy", of),
        approx_kl=statistic(stats, "approx_kl", of),
        clip_fraction=statistic(stats, "clip_fraction", of),
        value_loss=statistic(stats, "value_loss", of),
        explained_variance=stats.get("explained_variance" if of is None else f"{of}/explained_variance"),
        gradient_norm=stats.get("gradient_norm"),
        continuous=state.experience is not None and _acts_with_numbers(state.experience.spec),
    )


def has_one_observation(experience: Mapping[str, NDArray[Any]]) -> bool:
    """Whether what is observed in all valid steps is the same."""
    segments, steps = np.nonzero(experience["valid"])
    for name in experience:
        if name == OBSERVATION or name.startswith(f"{OBSERVATION}/"):
            observed, seen, compared = experience[name], 1, 1
            while seen < len(steps):  # more each time: mostly, the first two differ
                part = observed[segments[seen : seen + compared], steps[seen : seen + compared]]
                if (part != observed[segments[0], steps[0]]).any():
                    return False
                seen, compared = seen + compared, 2 * compared
    return True


def _returns(state: TrainerState, policy: str) -> Sequence[float]:
    statistics = state.rollout_stats or {}
    if policy == _RUN:
        return statistics.get(EPISODE_RETURN, ())
    types = returns_by_type(statistics)
    if policy in types:
        return types[policy]
    # The policy of all types that have none of their own.
    shared = types.keys() - set(policies_in(state.loss_stats or {}))
    return [value for kind in sorted(shared) for value in types[kind]]


def _of(name: str, text: str) -> str:
    return text if name == _RUN else f"{name}: {text}"


def _acts_with_numbers(spec: ExperienceSpec) -> bool:
    return any(field.name == "action" and np.issubdtype(field.dtype, np.floating) for field in spec.fields)
