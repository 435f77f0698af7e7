"""Copies of a single environment stepped one after another, each reset in the step that ends its episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np

from orchestrator.environments.capture import EnvironmentState
from orchestrator.environments.spaces import (
    ActionConverter,
    Array,
    InvalidEnvironment,
    Observation,
    ObservationConverter,
    array_specs,
    arrays_of,
    observation_of,
)
from orchestrator.environments.vector import EnvironmentFailed, Step, VectorEnvironment, copy_seeds


class SerialEnvironment(VectorEnvironment):
    """Steps `environments` in order. An observation is copied at once: environments may reuse their arrays.

    gymnasium's SyncVectorEnv does the same in a quarter more time, most of it spent on batching infos that
    nobody reads.
    """

    native: ClassVar[bool] = False
    same_step = True

    def __init__(self, name: str, environments: Sequence[gymnasium.Env[Any, Any]]) -> None:
        first = environments[0]
        super().__init__(name, len(environments), first.observation_space, first.action_space)
        for index, environment in enumerate(environments):
            if (environment.observation_space, environment.action_space) != (
                first.observation_space,
                first.action_space,
            ):
                raise InvalidEnvironment(
                    f"environment {name!r}: copy {index} has the spaces {environment.observation_space} and"
                    f" {environment.action_space}, copy 0 has {first.observation_space} and {first.action_space};"
                    " all copies must have the same"
                )
        self._environments = tuple(environments)
        self._state = EnvironmentState(environments)
        self._to_environment = ActionConverter(first.action_space)
        self._to_agent = ObservationConverter(first.observation_space)
        self._observations = _Rows(self, self._to_agent.offsets)
        self._final_observations = _Rows(self, self._to_agent.offsets)
        self._reward = np.zeros(self.count, np.float32)
        self._terminated = np.zeros(self.count, np.bool_)
        self._truncated = np.zeros(self.count, np.bool_)
        self._all_valid = np.ones(self.count, np.bool_)
        self._infos: list[Mapping[str, object]] = [{}] * self.count

    def reset(self, seed: int | None = None) -> Observation:
        seeds = [None] * self.count if seed is None else copy_seeds(seed, self.count)
        for index, environment in enumerate(self._environments):
            self._reset_copy(index, environment, seeds[index])
        return self._observations.observation

    def step(self, actions: Array) -> Step:
        observations, reward, infos = self._observations, self._reward, self._infos
        terminated, truncated = self._terminated, self._truncated
        final_observation: Observation | None = None
        ended_infos: list[Mapping[str, object]] = []
        index = 0
        converted = self._to_environment(actions)
        for index, environment in enumerate(self._environments):
            try:
                observation, gain, done, cut, info = environment.step(converted[index])
                observations.write(index, observation)
                if gain is None:  # pyright: ignore[reportUnnecessaryComparison] - numpy would store NaN
                    raise TypeError("the reward is None")
                reward[index] = gain
            except Exception as error:
                raise self._failed("step", index, error) from error
            terminated[index] = done
            truncated[index] = cut
            infos[index] = info
            if done or cut:
                self._final_observations.copy_row(index, observations)
                final_observation = self._final_observations.observation
                ended_infos.append(info)
                self._reset_copy(index, environment, None)
        return Step(
            observations.observation, reward, terminated, truncated, self._all_valid, final_observation, ended_infos
        )

    def info(self, name: str, shape: tuple[int, ...]) -> Array:
        return np.stack([self.info_array(name, _lookup(info, name), shape, info) for info in self._infos])

    def get_state(self) -> dict[str, object]:
        return self._state.capture()

    def set_state(self, state: Mapping[str, object]) -> None:
        self._state.restore(state)

    def close(self) -> None:
        for environment in self._environments:
            environment.close()

    def _reset_copy(self, index: int, environment: gymnasium.Env[Any, Any], seed: int | None) -> None:
        try:
            observation, _ = environment.reset(seed=seed)
            self._observations.check(observation)
            self._observations.write(index, observation)
        except Exception as error:
            raise self._failed("reset", index, error) from error

    def _failed(self, what: str, index: int, error: Exception) -> EnvironmentFailed:
        return EnvironmentFailed(
            f"environment {self.name!r}: {what} of copy {index} of {self.count} failed with"
            f" {type(error).__name__}: {error}"
        )


class _Rows:
    """A batch of observations that is written copy by copy."""

    def __init__(self, environment: VectorEnvironment, offsets: Mapping[str, Any]) -> None:
        self._specs = array_specs(environment.observation_space)
        self._arrays = {
            key: np.zeros((environment.count, *spec.shape), spec.dtype) for key, spec in self._specs.items()
        }
        self._offsets = {key: offset for key, offset in offsets.items() if offset is not None}
        self.observation = observation_of(self._arrays)

    def write(self, index: int, observation: Any) -> None:
        if isinstance(self.observation, dict):
            for key, array in self._arrays.items():
                array[index] = observation[key]
        else:
            self.observation[index] = observation
        for key, offset in self._offsets.items():
            self._arrays[key][index] -= offset

    def copy_row(self, index: int, source: _Rows) -> None:
        for key, array in self._arrays.items():
            array[index] = source._arrays[key][index]

    def check(self, observation: Any) -> None:
        """Raise for an observation that is not of the space's shape: assignment would broadcast it in silence."""
        arrays: Mapping[str, Any] = arrays_of(observation)
        for key, spec in self._specs.items():
            if np.shape(arrays[key]) != spec.shape:
                of_key = f" of key {key!r}" if key else ""
                raise ValueError(
                    f"the observation{of_key} has the shape {list(np.shape(arrays[key]))},"
                    f" the observation space says {list(spec.shape)}"
                )


def _lookup(info: Mapping[str, object], name: str) -> object:
    value: object = info
    for part in name.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
