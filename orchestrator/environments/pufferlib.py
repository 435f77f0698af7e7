"""PufferLib's environments, named "pufferlib/cartpole", and `PufferEnv`s that functions return."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from orchestrator.config.error import nearest
from orchestrator.environments.agents import SINGLE_AGENT
from orchestrator.environments.returned import WrongReturn
from orchestrator.environments.spaces import Array, InvalidEnvironment
from orchestrator.environments.vector import LOGS

if TYPE_CHECKING:
    from collections.abc import Callable

_OCEAN = "pufferlib.ocean.environment"


@runtime_checkable
class PufferEnv(Protocol):
    """What `pufferlib.PufferEnv` promises: it writes what happens to its agents into arrays of its own."""

    single_observation_space: Any
    single_action_space: Any
    num_agents: int
    observations: Array
    """`[num_agents, ...]`."""
    rewards: Array
    terminals: Array
    truncations: Array

    def reset(self, seed: int | None = None) -> Any: ...
    def step(self, actions: Array) -> Any: ...
    def close(self) -> Any: ...


class PufferVector(VectorEnv[Any, Any, Any]):
    """A `PufferEnv` of `games` as a vector environment of its agents.

    It resets in the step that ends an episode, and then gives the next episode's first observation alone. Of an
    episode that was truncated, the observation before its last step stands in for the last.
    """

    def __init__(self, environment: PufferEnv, games: int) -> None:
        self.num_envs = environment.num_agents
        agents, left = divmod(self.num_envs, games)
        self.agents = SINGLE_AGENT if agents < 2 or left else tuple(f"agent_{index}" for index in range(agents))
        self.single_observation_space = environment.single_observation_space
        self.single_action_space = environment.single_action_space
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = getattr(environment, "render_mode", None)
        self._environment = environment

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._environment.reset(seed)
        return self._environment.observations, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        environment = self._environment
        before = environment.observations.copy()
        *_, logs = environment.step(actions)
        if not isinstance(logs, (list, tuple)) or not all(isinstance(log, Mapping) for log in cast("list[Any]", logs)):
            raise WrongReturn(f"{logs!r:.100} as its logs, the last value, expected a list of dicts, maybe empty")
        terminated, truncated = environment.terminals.astype(np.bool_), environment.truncations.astype(np.bool_)
        infos: dict[str, Any] = {LOGS: logs}
        if (terminated | truncated).any():
            infos["final_obs"] = before
        return environment.observations, environment.rewards, terminated, truncated, infos

    def render(self) -> Any:
        frame = self._environment.render()  # type: ignore[attr-defined]
        return None if frame is None else (frame,)

    def close_extras(self, **kwargs: Any) -> None:
        self._environment.close()


def find_ocean(name: str) -> Callable[..., object]:
    """The class of PufferLib's own environment `name`. Raises InvalidEnvironment for one that it does not have, and
    ImportError where PufferLib is not installed."""
    ocean = importlib.import_module(_OCEAN)
    if name not in ocean.MAKE_FUNCTIONS:
        hint = nearest(name, ocean.MAKE_FUNCTIONS)
        raise InvalidEnvironment(f"environment 'pufferlib/{name}': PufferLib has no {name!r}: {hint}")
    return ocean.env_creator(f"puffer_{name}")
