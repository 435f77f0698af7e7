"""The share of a collector's copies that one environment worker steps, and the shared memory that it writes to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from orchestrator.environments.adaptation import Adaptation
from orchestrator.environments.make import Mode, make_vector
from orchestrator.environments.spaces import Array, ObservationArrays, Space, array_specs, arrays_of
from orchestrator.environments.vector import Step, VectorEnvironment
from orchestrator.workers.global_generators import global_generators, seed_global_generators, set_global_generators
from state.experience import ExperienceSpec, FieldSpec
from state.shared_memory import SharedBuffer

OBSERVATION, FINAL = "observation/", "final/"
ACTION, ACTION_MASK = "action", "action_mask"
_FLAGS = ("terminated", "truncated", "valid", "idle", "games_ended")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiesPlan:
    """What copies of an environment are made of."""

    environment: str
    options: Mapping[str, object]
    mode: Mode
    adaptation: Adaptation
    first_copy: int
    """Of the run's copies, as messages number them."""
    copies_of_run: int

    def make(self, games: range) -> VectorEnvironment:
        """These of the collector's copies. Raises as `make_vector`."""
        made = make_vector(self.environment, len(games), self.options, self.mode, self.adaptation)
        made.first_copy, made.copies_of_run = self.first_copy + games.start, self.copies_of_run
        made.seeded_from = games.start
        return made


class Description(NamedTuple):
    """What a worker's copies are, once they are made."""

    observation_space: Space
    action_space: Space
    """The environment's own, as the one above."""
    agents: tuple[str, ...]
    native: bool
    spaces_of_policies: Mapping[str, tuple[Space, Space]]


class StepReply(NamedTuple):
    """What of a step is not in the shared memory."""

    ended: bool
    """Whether there are final observations."""
    stats: Mapping[str, list[float]]
    warnings: Mapping[str, str]
    observation: ObservationArrays | None = None
    """Where it is not in the memory: for who is in the same thread, that would be one copy more."""


def shared_spec(observation: Space, action: Space, rows: int, choices: int) -> ExperienceSpec:
    """The layout of the memory in which a collector's `rows` take actions and leave what came of them."""
    fields = [_action_field(action)]
    for key, spec in array_specs(observation).items():
        fields += [_field(of + key, spec.shape, spec.dtype.name) for of in (OBSERVATION, FINAL)]
    fields += [_field("reward", (), "float32"), *(_field(name, (), "bool") for name in _FLAGS)]
    if choices:
        fields.append(_field(ACTION_MASK, (choices,), "bool"))
    return ExperienceSpec(rows, 1, tuple(fields))


def fields_spec(fields: Sequence[FieldSpec], rows: int) -> ExperienceSpec:
    """The layout of the memory for what losses ask infos for."""
    return ExperienceSpec(rows, 1, tuple(replace(one, per="segment") for one in fields))


class EnvironmentShard:
    """What an environment worker holds: for each group of the collector's copies its share, an ordinary
    `VectorEnvironment`, which `step` steps; the memory is that of all rows.

    With `seed`, the process's own generators are seeded from it, and are part of the state.
    """

    def __init__(self, plan: CopiesPlan, shares: Sequence[range], seed: int | None) -> None:
        self._own_process = seed is not None
        if seed is not None:
            seed_global_generators(seed)
        self._shares: list[_Share] = []
        try:
            for games in shares:
                self._shares.append(_Share(plan.make(games), games))
        except BaseException:
            self.close()
            raise

    def describe(self) -> Description:
        environment = self._shares[0].environment
        return Description(
            *environment.own_spaces, environment.agents, environment.native, environment.own_spaces_of_policies
        )

    def share_memory(self, spec: ExperienceSpec, buffer: SharedBuffer) -> None:
        """Read actions from and write steps to `buffer`."""
        arrays = spec.arrays(buffer.map_shared())
        for share in self._shares:
            share.use(arrays)

    def record(self, fields: Sequence[FieldSpec], rows: int, buffer: SharedBuffer) -> None:
        """As `VectorEnvironment.record`; `buffer` has them of all `rows`."""
        arrays = fields_spec(fields, rows).arrays(buffer.map_shared())
        for share in self._shares:
            share.environment.record(fields)
            share.record(arrays)

    def reset(self, seed: int | None) -> Mapping[str, str]:
        """Returns warnings."""
        warnings: dict[str, str] = {}
        for share in self._shares:
            with share.environment.warnings_noted():
                share.write_observation(arrays_of(share.environment.reset(seed)))
                share.write_idle()
            warnings |= share.environment.take_warnings()
        return warnings

    def step(self, group: int) -> StepReply:
        """Take the actions that are in the memory."""
        self.begin_step(group)
        return self.end_step(group)

    def begin_step(self, group: int) -> None:
        share = self._shares[group]
        share.read_mask()
        with share.environment.warnings_noted():
            share.environment.send(share.action.copy())  # an environment may keep its action

    def end_step(self, group: int, *, here: bool = False) -> StepReply:
        """Wait for what has been begun. `here`: for the thread that calls this, which gets the observation itself."""
        share = self._shares[group]
        with share.environment.warnings_noted():
            step = share.environment.recv()
        share.write(step)
        if not here:
            share.write_observation(arrays_of(step.observation))
        ended, observation = step.final_observation is not None, step.observation if here else None
        return StepReply(ended, step.stats, share.environment.take_warnings(), observation)

    def get_state(self) -> dict[str, Any]:
        """Of each share; see `VectorEnvironment.get_state`."""
        states = [share.environment.get_state() for share in self._shares]
        return {"shares": states, "generators": global_generators() if self._own_process else None}

    def set_state(self, states: Sequence[Mapping[str, object]], generators: Mapping[str, Any] | None) -> None:
        for share, state in zip(self._shares, states, strict=True):
            share.environment.set_state(state)
            share.write_idle()
        if self._own_process and generators is not None:
            set_global_generators(generators)

    def close(self) -> None:
        for share in self._shares:
            share.environment.close()


class _Share:
    """A group's copies in one worker, with their rows of the shared arrays."""

    action: Array

    def __init__(self, environment: VectorEnvironment, games: range) -> None:
        self.environment = environment
        agents = len(environment.agents)
        self._games = slice(games.start, games.stop)
        self._rows = slice(games.start * agents, games.stop * agents)
        self._fields: dict[str, Array] = {}

    def use(self, arrays: Mapping[str, Array]) -> None:
        mine = {name: array[self._rows] for name, array in arrays.items()}
        self.action = mine[ACTION]
        self._observation = {key.removeprefix(OBSERVATION): mine[key] for key in mine if key.startswith(OBSERVATION)}
        self._final = {key.removeprefix(FINAL): mine[key] for key in mine if key.startswith(FINAL)}
        self._reward, self._terminated, self._truncated = mine["reward"], mine["terminated"], mine["truncated"]
        self._valid, self._idle, self._mask = mine["valid"], mine["idle"], mine.get(ACTION_MASK)
        self._own_mask = self.environment.action_mask
        self._games_ended = arrays["games_ended"][self._games]

    def record(self, arrays: Mapping[str, Array]) -> None:
        self._fields = {name: array[self._rows] for name, array in arrays.items()}

    def write(self, step: Step) -> None:
        self._reward[...], self._valid[...] = step.reward, step.valid
        self._terminated[...], self._truncated[...] = step.terminated, step.truncated
        if step.games_ended is not None:
            self._games_ended[...] = step.games_ended
        if step.final_observation is not None:
            ended = np.flatnonzero(step.terminated | step.truncated)
            for key, array in arrays_of(step.final_observation).items():
                self._final[key][ended] = array[ended]
        for name, values in step.fields.items():
            self._fields[name][...] = values
        self.write_idle()

    def read_mask(self) -> None:
        """It may be that of a checkpoint, which the environment does not know of."""
        if self._own_mask is not None:
            self._own_mask[...] = self._mask

    def write_observation(self, arrays: Mapping[str, Array]) -> None:
        for key, array in arrays.items():
            self._observation[key][...] = array

    def write_idle(self) -> None:
        self._idle[...] = self.environment.idle
        if self._mask is not None:
            self._mask[...] = self._own_mask


def _field(name: str, shape: tuple[int, ...], dtype: str) -> FieldSpec:
    return FieldSpec(name, shape, dtype, per="segment")


def _action_field(space: Space) -> FieldSpec:
    if isinstance(space, gymnasium.spaces.Box):
        return _field(ACTION, (math.prod(space.shape),), "float32")
    return _field(ACTION, tuple(space.shape or ()), "int64")
