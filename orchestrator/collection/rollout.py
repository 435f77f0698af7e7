"""What one rollout gave step by step, and how it becomes the fields of the experience."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator.collection.experience_fields import (
    FINAL_OBSERVATION,
    FINAL_OBSERVATIONS,
    FINAL_RECURRENT_STATE,
    observation_field,
)
from orchestrator.environments import EnvironmentGroup, Step
from orchestrator.environments.spaces import Array, arrays_of, observation_of
from orchestrator.policies.acting import ActingPolicy, Decision, as_tensors, on_host
from orchestrator.policies.network import Observation


@dataclass(frozen=True, slots=True)
class CutEpisodes:
    """Episodes that were truncated, and whose rows observe something else from then on."""

    step: int
    rows: Array
    final_observation: Mapping[str, Array]
    """`[len(rows), ...]` by key."""
    state: Tensor | None


class Rollout:
    """Records `horizon` steps of `count` rows, which belong to `games`, group by group; the arrays `[horizon, count]`
    are reused by the next rollout."""

    def __init__(self, horizon: int, count: int, games: int, groups: Sequence[EnvironmentGroup]) -> None:
        self._horizon = horizon
        self._groups = groups
        self._reward = np.zeros((horizon, count), np.float32)
        self._terminated = np.zeros((horizon, count), np.bool_)
        self._truncated = np.zeros((horizon, count), np.bool_)
        self._valid = np.zeros((horizon, count), np.bool_)
        self._episode_start = np.zeros((horizon, count), np.bool_)
        self._games_ended = np.zeros((horizon, games), np.bool_)
        self.begin()

    def begin(self) -> None:
        self.steps = 0
        """That are recorded of all groups."""
        self.stats: dict[str, list[float]] = {}
        """The numbers in the last infos of the episodes that ended."""
        # By group, step by step.
        self._parameters: list[list[Tensor]] = [[] for _ in self._groups]
        self._actions: list[list[Tensor]] = [[] for _ in self._groups]
        self._values: list[list[Tensor]] = [[] for _ in self._groups]
        self.cut: list[CutEpisodes] = []

    @property
    def complete(self) -> bool:
        return self.steps == self._horizon

    @property
    def reward(self) -> Array:
        """`[steps, count]`, of the steps recorded so far."""
        return self._reward[: self.steps]

    @property
    def ended(self) -> Array:
        return self._terminated[: self.steps] | self._truncated[: self.steps]

    @property
    def valid(self) -> Array:
        return self._valid[: self.steps]

    @property
    def games_ended(self) -> Array:
        """`[steps, games]`, where games have many agents."""
        return self._games_ended[: self.steps]

    @property
    def parameters(self) -> Tensor:
        """Of the action distributions, `[steps, count, P]`."""
        return _joined(self._parameters, time=0)

    def add(
        self,
        group: int,
        acting: ActingPolicy,
        episode_start: Array,
        decision: Decision,
        step: Step,
    ) -> None:
        """Record the step that a decision led to, for the rows of a group; `episode_start` is of the observation that
        was acted on. A step is recorded of all groups in order before the next one is."""
        index, games, rows = self.steps, self._groups[group].games, self._groups[group].rows
        # A user's network may return views of the observation, or the same tensor at every call.
        self._parameters[group].append(decision.parameters.clone())
        self._actions[group].append(decision.action)
        if decision.value is not None:
            self._values[group].append(decision.value.clone())
        self._episode_start[index, rows] = episode_start
        self._reward[index, rows] = step.reward
        self._terminated[index, rows] = step.terminated
        self._truncated[index, rows] = step.truncated
        self._valid[index, rows] = step.valid
        if step.games_ended is not None:
            self._games_ended[index, games] = step.games_ended
        if step.final_observation is not None:
            cut = np.flatnonzero(step.truncated & ~step.terminated)
            if len(cut):
                final = {key: array[cut] for key, array in arrays_of(step.final_observation).items()}
                cut += rows.start
                state = None if acting.state is None else acting.state[acting.there(torch.from_numpy(cut))]
                self.cut.append(CutEpisodes(index, cut, final, state))
        for name, values in step.stats.items():
            self.stats.setdefault(name, []).extend(values)
        if group == len(self._groups) - 1:
            self.steps += 1

    def write(
        self, slot: Mapping[str, Array], acting: ActingPolicy, observations: Observation, following: Observation
    ) -> None:
        """Write every field but the observations into the rows `slot` `[count, horizon, ...]`.

        `observations` are the recorded ones `[count, horizon, ...]`, `following` `[count, ...]` those after the
        last step.
        """
        for name, array in (
            ("reward", self._reward),
            ("terminated", self._terminated),
            ("truncated", self._truncated),
            ("valid", self._valid),
            ("episode_start", self._episode_start),
        ):
            slot[name][...] = array.T
        actions, parameters = _joined(self._actions, time=1), _joined(self._parameters, time=1)
        slot["action"][...] = on_host(actions)
        slot["log_prob"][...] = on_host(acting.policy.distribution.log_prob(parameters, actions))
        value = slot["value"]
        value[...] = on_host(_joined(self._values, time=1) if self._values[0] else acting.values(observations))
        next_value = slot["next_value"]
        next_value[:, :-1] = value[:, 1:]
        next_value[:, -1] = on_host(acting.value(following, acting.state))
        self._value_cut_episodes(next_value, acting)
        next_value[slot["terminated"] | ~slot["valid"]] = 0.0

    def write_final_observations(self, slot: Mapping[str, Array]) -> None:
        """Of the episodes that a step truncated which also began the next: see `experience_fields`."""
        written = slot[FINAL_OBSERVATIONS]
        written[...] = 0
        for cut in self.cut:
            places = cut.rows, written[cut.rows]
            for key, array in cut.final_observation.items():
                slot[observation_field(key, FINAL_OBSERVATION)][places] = array
            if cut.state is not None:
                slot[FINAL_RECURRENT_STATE][places] = on_host(cut.state)
            written[cut.rows] += 1

    def _value_cut_episodes(self, next_value: Array, acting: ActingPolicy) -> None:
        if not self.cut:
            return
        steps = np.repeat([cut.step for cut in self.cut], [len(cut.rows) for cut in self.cut])
        rows = np.concatenate([cut.rows for cut in self.cut])
        states = [cut.state for cut in self.cut if cut.state is not None]
        keys = self.cut[0].final_observation
        final = {key: np.concatenate([cut.final_observation[key] for cut in self.cut]) for key in keys}
        value = acting.value(as_tensors(observation_of(final)), torch.cat(states) if states else None)
        next_value[rows, steps] = on_host(value)


def _joined(groups: list[list[Tensor]], time: int) -> Tensor:
    """The tensors `[rows, ...]` of each group and step as one, whose axis `time`, of the first two, is the steps."""
    stacked = [torch.stack(steps, dim=time) for steps in groups]
    return stacked[0] if len(stacked) == 1 else torch.cat(stacked, dim=1 - time)
