"""PufferLib's environments, named "pufferlib/cartpole", and `PufferEnv`s and vectors of PufferLib that functions
return."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from orchestrator.config.error import nearest
from orchestrator.config.paths import PATH
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
    episode that was truncated, the observation before its last step stands in for the last. PufferLib's vectors of
    Gymnasium's environments reset in the step after that.
    """

    def __init__(self, environment: PufferEnv, games: int) -> None:
        self._resets_in_same_step = not _emulation_of(environment)
        self.num_envs = environment.num_agents
        agents, left = divmod(self.num_envs, games)
        self.agents = SINGLE_AGENT if agents < 2 or left else tuple(f"agent_{index}" for index in range(agents))
        self.single_observation_space = environment.single_observation_space
        self.single_action_space = environment.single_action_space
        mode = AutoresetMode.SAME_STEP if self._resets_in_same_step else AutoresetMode.NEXT_STEP
        self.metadata = {"autoreset_mode": mode}
        self.render_mode = getattr(environment, "render_mode", None)
        self._environment = environment
        self._seeds = np.random.default_rng()
        """Of resets that are given none: many environments need one, and for others none is the same each time."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        self._environment.reset(int(self._seeds.integers(2**31)) if seed is None else seed)
        return self._environment.observations, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        environment = self._environment
        before = environment.observations.copy()
        *_, logs = environment.step(actions)
        if not isinstance(logs, (list, tuple)) or not all(isinstance(log, Mapping) for log in cast("list[Any]", logs)):
            raise WrongReturn(f"{logs!r:.100} as its logs, the last value, expected a list of dicts, maybe empty")
        terminated, truncated = environment.terminals.astype(np.bool_), environment.truncations.astype(np.bool_)
        infos: dict[str, Any] = {LOGS: logs}
        if self._resets_in_same_step and (terminated | truncated).any():
            infos["final_obs"] = before
        return environment.observations, environment.rewards, terminated, truncated, infos

    def render(self) -> Any:
        frame = self._environment.render()  # type: ignore[attr-defined]
        return None if frame is None else (frame,)

    def close_extras(self, **kwargs: Any) -> None:
        self._environment.close()


def out_of_emulation(made: object) -> object:
    """The environment that PufferLib's emulation wraps, which makes flat arrays of others' observations and actions.
    A vector of such ones stays as it is. Raises WrongReturn where its arrays are flat, its games have several agents,
    or processes of its own step them."""
    if not _emulation_of(made):
        return made
    if hasattr(made, "env"):
        return cast("Any", made).env
    driver = getattr(made, "driver_env", None)
    flat = getattr(driver, "is_obs_emulated", True) or getattr(driver, "is_atn_emulated", True)
    if flat or getattr(driver, "num_agents", 0) != 1 or not isinstance(made, PufferEnv):
        raise WrongReturn(
            "a vector of PufferLib in whose emulation observations or actions are flat, games have several agents, or"
            " other processes step them; return a single environment, without pufferlib.vector: its copies are made"
            f" here, with the spaces that it has, and stepped in processes by {PATH.collection.environment_workers}"
        )
    return made


def _emulation_of(made: object) -> bool:
    """Whether PufferLib's emulation is in an environment or a vector: a dict says how, False that it is not."""
    return isinstance(getattr(made, "emulated", None), dict)


def find_ocean(name: str) -> Callable[..., object]:
    """The class of PufferLib's own environment `name`. Raises InvalidEnvironment for one that it does not have, and
    ImportError where PufferLib is not installed."""
    ocean = importlib.import_module(_OCEAN)
    if name not in ocean.MAKE_FUNCTIONS:
        hint = nearest(name, ocean.MAKE_FUNCTIONS)
        raise InvalidEnvironment(f"environment 'pufferlib/{name}': PufferLib has no {name!r}: {hint}")
    return ocean.env_creator(f"puffer_{name}")
