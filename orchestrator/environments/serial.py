"""Copies of a single environment stepped one after another, each reset in the step that ends its episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np

from orchestrator.environments.action_mask import USUAL_MASK
from orchestrator.environments.adaptation import NO_ADAPTATION, Adaptation
from orchestrator.environments.capture import EnvironmentState
from orchestrator.environments.observations import ObservationReader, ObservationRows
from orchestrator.environments.returned import (
    WrongEntry,
    WrongReturn,
    check_info,
    flag_of,
    narrow,
    reset_parts,
    reward_of,
    step_parts,
)
from orchestrator.environments.space_seeds import SpaceSeeds
from orchestrator.environments.spaces import (
    ActionConverter,
    Array,
    InvalidEnvironment,
    ObservationArrays,
    arrays_of,
)
from orchestrator.environments.vector import LOGS, EnvironmentFailed, Step, VectorEnvironment, copy_seeds
from state.stats_tracker import accumulate_rollout_stats
from state.user_code import described, is_signal, user_code


class SupportsClose(Protocol):
    def close(self) -> object: ...


_LARGE = 2**63
"""Integers from here on need a look before they become floats."""


class SerialEnvironment(VectorEnvironment):
    """Steps `environments` in order. What a step returns is copied at once: environments may reuse arrays and infos.

    gymnasium's SyncVectorEnv does the same in a quarter more time, most of it spent on batching infos that
    nobody reads.
    """

    native: ClassVar[bool] = False

    def __init__(
        self, name: str, environments: Sequence[gymnasium.Env[Any, Any]], adaptation: Adaptation = NO_ADAPTATION
    ) -> None:
        first = environments[0]
        super().__init__(name, len(environments), first.observation_space, first.action_space, adaptation)
        for index, environment in enumerate(environments):
            if (environment.observation_space, environment.action_space) != (
                first.observation_space,
                first.action_space,
            ):
                raise InvalidEnvironment(
                    f"environment {name!r}: copy {index} has the spaces {environment.observation_space} and"
                    f" {environment.action_space}, copy 0 has {first.observation_space} and {first.action_space};"
                    " all copies must have the same: let them depend on the options alone"
                )
        self._environments = tuple(environments)
        self._state = EnvironmentState(environments)
        self._space_seeds = SpaceSeeds(environments)
        self._to_environment = ActionConverter(first.action_space, squash=adaptation.squash)
        self._key_of_mask = None if self._mask is None else self._mask.key_of_info
        self._scalar_box = isinstance(first.action_space, gymnasium.spaces.Box) and not first.action_space.shape
        reader = ObservationReader(first.observation_space, self.warn)
        self._observations = ObservationRows(reader, self.count)
        self._final_observations = ObservationRows(reader, self.count)
        self._observation = self._without_mask(self._observations.observation)
        self._final_observation = self._without_mask(self._final_observations.observation)
        self._reward = np.zeros(self.count, np.float32)
        self._given_reward = np.zeros(self.count)
        self._terminated = np.zeros(self.count, np.bool_)
        self._truncated = np.zeros(self.count, np.bool_)
        self._all_valid = np.ones(self.count, np.bool_)

    def reset(self, seed: int | None = None) -> ObservationArrays:
        seeds = [None] * self.count if seed is None else self._seeds_of_copies(seed)
        if seed is not None and self._space_seeds.seed(self._seeds_of_copies(seed), copy_seeds(seed, 1)[0]):
            self._state = EnvironmentState(self._environments)  # to which these seeds are no change
        for index, environment in enumerate(self._environments):
            self._reset_copy(index, environment, seeds[index])
        self._finish_observations(reset=True)
        return self._observation

    def step(self, actions: Array) -> Step:
        observations, reward = self._observations, self._given_reward
        terminated, truncated = self._terminated, self._truncated
        terminated.fill(False)
        truncated.fill(False)
        final_observation: ObservationArrays | None = None
        stats: dict[str, list[float]] = {}
        index = 0
        self._steps += 1
        self._check_allowed(actions)
        converted = self._to_environment(actions)
        if self._scalar_box:
            converted = [np.asarray(action) for action in converted]  # numpy's numbers are no arrays
        reads_infos = bool(self._given_fields) or self._key_of_mask is not None
        # Every line below runs once per agent step: the usual types are recognized here, all others elsewhere.
        for index, environment in enumerate(self._environments):
            try:
                result = environment.step(converted[index])
                if type(result) is not tuple or len(result) != 5:
                    result = step_parts(result)
                observation, gain, done, cut, info = result
                observations.write(index, observation)
                usual = isinstance(gain, float) or (isinstance(gain, int) and -_LARGE < gain < _LARGE)
                reward[index] = gain if usual else reward_of(gain, self.warn)
                if type(info) is not dict:
                    check_info(info)
                if reads_infos:
                    self._read_info(index, info)
                if LOGS in info:
                    accumulate_rollout_stats(info[LOGS], stats)
                if done is False and cut is False:
                    continue
                terminated[index] = done = flag_of("terminated", done, self.warn)
                truncated[index] = cut = flag_of("truncated", cut, self.warn)
                if done or cut:
                    accumulate_rollout_stats((info,), stats)
            except EnvironmentFailed:
                raise
            except BaseException as error:
                if is_signal(error):
                    raise
                raise self._failed("step", index, error) from error
            if done or cut:
                self._final_observations.copy_row(index, observations)
                final_observation = self._final_observation
                self._reset_copy(index, environment, None)
        self._finish_step(final_observation is not None)
        return Step(
            self._observation,
            self._reward,
            terminated,
            truncated,
            self._all_valid,
            final_observation,
            stats,
            self._fields,
        )

    def get_state(self) -> dict[str, object]:
        return self._state.capture()

    def set_state(self, state: Mapping[str, object]) -> None:
        self._state.restore(state)

    def close(self) -> None:
        close_all(self._environments)

    def _reset_copy(self, index: int, environment: gymnasium.Env[Any, Any], seed: int | None) -> None:
        try:
            observation, info = reset_parts(environment.reset(seed=seed))
            self._observations.write(index, observation)
            if self._mask is None and USUAL_MASK in info:
                self._hint_at_mask(info[USUAL_MASK])
            self._read_mask(index, info)
        except BaseException as error:
            if is_signal(error):
                raise
            raise self._failed("reset", index, error) from error

    def _read_info(self, index: int, info: Mapping[str, object]) -> None:
        for name, array in self._given_fields.items():
            array[index] = self._field(name, looked_up(info, name), info)
        self._read_mask(index, info)

    def _read_mask(self, index: int, info: Mapping[str, object]) -> None:
        if self._mask is not None and self._key_of_mask is not None:
            self._mask.write(index, looked_up(info, self._key_of_mask), info)

    def _finish_step(self, any_ended: bool) -> None:
        try:
            narrow(self._given_reward, self._reward, "the reward")
            self._finish_fields()
            if any_ended:
                self._final_observations.finish()
        except WrongEntry as error:
            raise self._failed("step", error.place[0], error) from None
        self._finish_observations()

    def _finish_observations(self, reset: bool = False) -> None:
        try:
            self._observations.finish()
            if self._mask is not None:
                self._mask.finish(arrays_of(self._observations.observation))
        except WrongEntry as error:
            copy = error.place[0]
            reset = reset or bool(self._terminated[copy] or self._truncated[copy])
            raise self._failed("reset" if reset else "step", copy, error) from None

    def _failed(self, what: str, index: int, error: BaseException) -> EnvironmentFailed:
        copy = f"{self.row_name(index)} of {self.copies_of_run}"
        place = f"step {self._steps} of {copy}" if what == "step" else f"reset of {copy}"
        when = f" after step {self._steps}" if what == "reset" and self._steps else ""
        if isinstance(error, WrongReturn):
            return EnvironmentFailed(f"environment {self.name!r}: {place}{when} returned {error}")
        cure = ""
        if isinstance(error, TypeError) and "unexpected keyword argument 'seed'" in str(error):
            cure = "; write `def reset(self, *, seed=None, options=None)` (old versions of Gym had no seed there)"
        return EnvironmentFailed(f"environment {self.name!r}: {place}{when} failed with {described(error)}{cure}")


def close_all(environments: Sequence[SupportsClose]) -> None:
    """Close each, whatever another one raises; then raise that, or all of it in an ExceptionGroup."""
    errors: list[Exception] = []
    for index, environment in enumerate(environments):
        try:
            with user_code(f"close of copy {index} of {len(environments)}"):
                environment.close()
        except Exception as error:
            errors.append(error)
    if len(errors) > 1:
        raise ExceptionGroup(f"{len(errors)} of {len(environments)} copies failed to close", errors)
    if errors:
        raise errors[0]


def give_up(*environments: Any) -> None:
    """Close what is not used after all. That one can't be closed is not told: why it is not used is what matters."""
    with suppress(Exception):
        close_all(environments)


def looked_up(info: Mapping[str, object], name: str) -> object:
    """What an info has as `name` ("a/b" is "b" in "a"); None without it."""
    value: object = info
    for part in name.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
