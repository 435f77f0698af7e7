"""One game of a vector environment, for what is made of single environments: wrappers, time limits, videos."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from orchestrator.environments.native import (
    check_final_memory,
    entry_of,
    final_infos,
    info_of,
    resets_in_same_step,
)
from orchestrator.environments.returned import WrongReturn, check_info, reset_parts, step_parts
from orchestrator.environments.vector import LOGS


class SingleGame(gymnasium.Env[Any, Any]):
    """The vector environment `name`, made with one copy, as a single environment.

    Raises InvalidEnvironment for one that leaves the resets to its caller or does not say what it does.
    """

    def __init__(self, name: str, vector: VectorEnv[Any, Any, Any]) -> None:
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self.metadata = vector.metadata
        self.render_mode = vector.render_mode
        self._same_step = resets_in_same_step(name, vector)
        self._vector = vector

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, infos = reset_parts(self._vector.reset(seed=seed, options=options))
        return copy.deepcopy(entry_of(observation, 0)), info_of(infos, 0, 1)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = step_parts(self._vector.step(np.asarray(action)[None]))
        check_info(infos)
        logs = infos.get(LOGS, ())
        if self._same_step and (terminated[0] or truncated[0]):
            if infos.get("final_obs") is None:
                raise WrongReturn(
                    "no 'final_obs' in its infos, expected the last observation of the episode, since it resets in"
                    " the step that ends one"
                )
            check_final_memory(infos["final_obs"], observation)
            observation, infos = infos["final_obs"], final_infos(infos)
        info = info_of(infos, 0, 1)
        if logs:
            info[LOGS] = logs
        # Its own memory, which the next step may write to.
        return copy.deepcopy(entry_of(observation, 0)), reward[0], terminated[0], truncated[0], info

    def render(self) -> Any:
        frames = self._vector.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self._vector.close()
