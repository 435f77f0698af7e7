"""Environments that step all their copies themselves, through gymnasium's vector interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from orchestrator.environments.capture import EnvironmentState
from orchestrator.environments.spaces import (
    ActionConverter,
    Array,
    InvalidEnvironment,
    Observation,
    ObservationConverter,
    arrays_of,
    observation_of,
)
from orchestrator.environments.vector import EnvironmentFailed, Step, VectorEnvironment


class NativeEnvironment(VectorEnvironment):
    """Adapts any gymnasium `VectorEnv` that resets its copies in the same or in the next step.

    Raises InvalidEnvironment for one that leaves the resets to its caller or does not say what it does.
    """

    native: ClassVar[bool] = True

    def __init__(self, name: str, environment: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(
            name, environment.num_envs, environment.single_observation_space, environment.single_action_space
        )
        autoreset = environment.metadata.get("autoreset_mode")
        if autoreset not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise InvalidEnvironment(
                f"the vector environment {name!r} has metadata['autoreset_mode'] = {autoreset!r};"
                f" supported are {AutoresetMode.SAME_STEP} and {AutoresetMode.NEXT_STEP}"
            )
        self.same_step = autoreset is AutoresetMode.SAME_STEP
        self._environment = environment
        self._state = EnvironmentState([environment])
        self._to_environment = ActionConverter(environment.single_action_space)
        self._to_agent = ObservationConverter(environment.single_observation_space)
        self._all_valid = np.ones(self.count, np.bool_)
        self._resetting: Array | None = None
        self._infos: Mapping[str, Any] = {}
        self._valid = self._all_valid
        self._ended = np.zeros(self.count, np.bool_)

    def reset(self, seed: int | None = None) -> Observation:
        try:
            observation, _ = self._environment.reset(seed=seed)
        except Exception as error:
            raise self._failed("reset", error) from error
        self._resetting = None
        return self._to_agent(observation)

    def step(self, actions: Array) -> Step:
        try:
            raw, gain, done, cut, infos = self._environment.step(self._to_environment(actions))
            observation = self._to_agent(raw)
            reward = np.asarray(gain, np.float32)
            terminated = np.asarray(done, np.bool_)
            truncated = np.asarray(cut, np.bool_)
        except Exception as error:
            raise self._failed("step", error) from error
        valid = self._all_valid
        if self._resetting is not None:
            # The call only reset these copies. Most environments report nothing for them; make sure.
            valid = ~self._resetting
            reward = np.where(valid, reward, np.float32(0.0))
            terminated = terminated & valid
            truncated = truncated & valid
        ended = terminated | truncated
        any_ended = np.count_nonzero(ended) > 0
        self._infos, self._valid, self._ended = infos, valid, ended
        final_observation: Observation | None = None
        if self.same_step:
            if any_ended:
                final_observation = self._final_observation(observation, ended)
        else:
            self._resetting = ended if any_ended else None
        return Step(
            observation,
            reward,
            terminated,
            truncated,
            valid,
            final_observation,
            self._episode_infos() if any_ended else (),
        )

    def info(self, name: str, shape: tuple[int, ...]) -> Array:
        values: list[Array] = []
        for index in range(self.count):
            infos = self._last_infos() if self._ended[index] else self._infos
            value = _row_at(infos, name, index) if self._valid[index] else np.zeros(shape)
            values.append(self.info_array(name, value, shape, infos))
        return np.stack(values)

    def get_state(self) -> dict[str, object]:
        resetting = None if self._resetting is None else self._resetting.copy()
        return self._state.capture() | {"resetting": resetting}

    def set_state(self, state: Mapping[str, object]) -> None:
        self._state.restore(state)
        self._resetting = cast("Array | None", state["resetting"])

    def close(self) -> None:
        self._environment.close()

    def _final_observation(self, observation: Observation, ended: Array) -> Observation:
        given: Any = self._infos.get("final_obs")
        if given is None:
            raise EnvironmentFailed(
                f"environment {self.name!r} resets in the step that ends an episode, so its infos must hold the"
                f" episode's last observation as 'final_obs'; they hold {sorted(map(str, self._infos))}"
            )
        finals = {key: array.copy() for key, array in arrays_of(observation).items()}
        for index in np.flatnonzero(ended):
            row = {key: given[key][index] for key in given} if isinstance(given, Mapping) else given[index]
            for key, array in arrays_of(self._to_agent(row)).items():
                finals[key][index] = array
        return observation_of(finals)

    def _last_infos(self) -> Mapping[str, Any]:
        """The infos that belong to the last step of the episodes that ended in it."""
        return self._infos.get("final_info", {}) if self.same_step else self._infos

    def _episode_infos(self) -> list[Mapping[str, object]]:
        infos = self._last_infos()
        return [_row(infos, int(index)) for index in np.flatnonzero(self._ended)] if infos else []

    def _failed(self, what: str, error: Exception) -> EnvironmentFailed:
        return EnvironmentFailed(
            f"environment {self.name!r}: {what} of its {self.count} copies failed with {type(error).__name__}: {error}"
        )


def _row(infos: Mapping[str, Any], index: int) -> dict[str, object]:
    """The info of the copy `index` out of gymnasium's batched infos: "_key" tells which copies gave "key"."""
    row: dict[str, object] = {}
    for key in infos:
        value = None if key.startswith("_") else _given(infos, key, index)
        if isinstance(value, Mapping):
            row[key] = _row(cast("Mapping[str, Any]", value), index)
        elif value is not None:
            row[key] = value[index]
    return row


def _row_at(infos: Mapping[str, Any], name: str, index: int) -> Any:
    """What `_row` would have as `name` ("a/b" is "b" in "a"); None without it."""
    value: Any = infos
    for key in name.split("/"):
        value = _given(value, key, index) if isinstance(value, Mapping) else None
    return None if value is None or isinstance(value, Mapping) else value[index]


def _given(infos: Mapping[str, Any], key: str, index: int) -> Any:
    mask = infos.get(f"_{key}")
    return infos.get(key) if mask is None or mask[index] else None
