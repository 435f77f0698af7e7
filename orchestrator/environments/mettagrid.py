"""MettaGrid's games, named "mettagrid/arena", and those that a `MettaGridConfig` describes: many agents on a grid.

Its simulator, in C++, writes into arrays that it is given: those that agents are shown.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from orchestrator.config.error import nearest
from orchestrator.environments.mettagrid_pictures import picture
from orchestrator.environments.spaces import Array, InvalidEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable

_BUILDERS = "mettagrid.builder.envs"
_PREFIX = "make_"
_SEEDS = 2**31
_STEPS_PER_SECOND = 10
"""In videos."""


class MettaGridVector(VectorEnv[Any, Any, Any]):
    """`games` of a `MettaGridConfig`, all of whose agents are rows: those of the first game come first.

    Observations are uint8 `[tokens, 3]`: a packed coordinate, a feature and its value, 255 where there is no token. A
    game is reset in the step that ends it; where its map is drawn, each episode has another one.
    """

    def __init__(self, config: Any, games: int) -> None:
        self._simulation: Any = importlib.import_module("mettagrid.simulator").Simulation
        simulator = importlib.import_module("mettagrid.simulator.simulator")
        interface = importlib.import_module("mettagrid.policy.policy_env_interface").PolicyEnvInterface.from_mg_cfg(
            config
        )
        agents = int(config.game.num_agents)
        self.agents = tuple(f"agent_{index}" for index in range(agents))
        self.num_envs = games * agents
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_fps": _STEPS_PER_SECOND}
        self.render_mode = "rgb_array"
        shape = (config.game.obs.num_tokens, config.game.obs.token_dim)
        self.single_observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.single_action_space = spaces.Discrete(len(interface.action_names))
        self._config = config
        self._own_map = _is_drawn(config)
        self._games = [slice(first, first + agents) for first in range(0, self.num_envs, agents)]
        self._observations = np.zeros((self.num_envs, *shape), np.uint8)
        self._rewards = np.zeros(self.num_envs, np.float32)
        self._terminated, self._truncated, masks = (np.zeros(self.num_envs, np.bool_) for _ in range(3))
        self._actions, vibes = np.zeros(self.num_envs, np.int32), np.zeros(self.num_envs, np.int32)
        self._buffers = [
            simulator.Buffers(
                observations=self._observations[rows],
                terminals=self._terminated[rows],
                truncations=self._truncated[rows],
                rewards=self._rewards[rows],
                masks=masks[rows],
                actions=self._actions[rows],
                teacher_actions=vibes[rows],
            )
            for rows in self._games
        ]
        self._simulations: list[Any] = [None] * games
        self._steps: list[Any] = [None] * games
        for game in range(games):
            self._begin(game)
        ids = self._simulations[0].action_ids
        self._action_ids = np.array([ids[name] for name in interface.action_names], np.int32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._np_random = np.random.default_rng(seed)
        for game in range(len(self._games)):
            self._begin(game)
        return self._observations, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        np.take(self._action_ids, actions, out=self._actions)
        for step in self._steps:
            step()
        terminated, truncated, rewards = self._terminated, self._truncated, self._rewards
        ended: list[int] = []
        if terminated.any() or truncated.any():
            ended = [game for game, simulation in enumerate(self._simulations) if simulation.is_done()]
        if not ended:
            return self._observations, rewards, terminated, truncated, {}
        # Beginning a game overwrites what it has in the arrays.
        terminated, truncated, rewards = terminated.copy(), truncated.copy(), rewards.copy()
        infos = {"final_obs": self._observations.copy(), "final_info": self._statistics(ended)}
        for game in ended:
            self._begin(game)
        return self._observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[Array, ...]:
        return tuple(picture(simulation) for simulation in self._simulations)

    def close_extras(self, **kwargs: Any) -> None:
        for simulation in self._simulations:
            simulation.close()
        self._steps.clear()

    def _begin(self, game: int) -> None:
        if self._simulations[game] is not None:
            self._simulations[game].close()
            self._steps[game] = None  # which would keep the simulator in C++
        config = self._config
        map_seed, seed = (int(number) for number in self.np_random.integers(_SEEDS, size=2))
        if self._own_map:
            config = config.model_copy(deep=True)
            config.game.map_builder.seed = map_seed
        simulation = self._simulation(config, seed=seed, buffers=self._buffers[game])
        self._simulations[game] = simulation
        # A step of the simulator in C++ is all there is to do. Around it, `Simulation.step` keeps time, hands on what
        # agents say, which none does here, and ends games by their statistics, where the config wants that.
        self._steps[game] = simulation.step if simulation._event_handlers else simulation._c_sim.step

    def _statistics(self, ended: list[int]) -> dict[str, Array]:
        """What the agents of games that have ended did in them, as the infos of their rows."""
        infos: dict[str, Array] = {}
        for game in ended:
            rows = self._games[game]
            for row, numbers in enumerate(self._simulations[game].episode_stats["agent"], rows.start):
                for name, value in numbers.items():
                    if name not in infos:
                        infos |= {name: np.zeros(self.num_envs), f"_{name}": np.zeros(self.num_envs, np.bool_)}
                    infos[name][row], infos[f"_{name}"][row] = value, True
        return infos


def is_config(made: object) -> bool:
    """Whether a function has returned a `MettaGridConfig`."""
    module = sys.modules.get("mettagrid.config.mettagrid_config")
    return module is not None and isinstance(made, module.MettaGridConfig)


def find_game(name: str) -> Callable[..., object]:
    """What makes the config of MettaGrid's game `name`. Raises InvalidEnvironment for one that it does not have, and
    ImportError where MettaGrid is not installed."""
    builders = importlib.import_module(_BUILDERS)
    known = [one.removeprefix(_PREFIX) for one in dir(builders) if one.startswith(_PREFIX)]
    if name not in known:
        hint = nearest(name, known)
        raise InvalidEnvironment(f"environment 'mettagrid/{name}': MettaGrid has no make_{name}: {hint}")
    make = getattr(builders, f"{_PREFIX}{name}")
    return partial(_arena, make) if name == "arena" else make


def _arena(
    make: Callable[..., Any],
    num_agents: int = 24,
    combat: bool = True,
    altars: int = 20,
    max_steps: int = 200,
) -> Any:
    """MettaGrid's arena, in which hearts are rewarded, with `altars` that give one to whoever moves into them: without
    them, nothing gives any."""
    config = make(num_agents, combat=combat)
    config.game.max_steps = max_steps
    if altars:
        objects = importlib.import_module("mettagrid.config.mettagrid_config")
        handlers = importlib.import_module("mettagrid.config.handler_config")
        mutation = importlib.import_module("mettagrid.config.mutation")
        gives = handlers.Handler(mutations=[mutation.updateActor({"heart": 1})])
        config.game.objects["altar"] = objects.GridObjectConfig(name="altar", on_use_handler=gives)
        config.game.map_builder.instance.objects["altar"] = altars
    return config


def _is_drawn(config: Any) -> bool:
    """Whether the map has a seed that may be set for each episode, and that the config leaves open."""
    builder = config.game.map_builder
    return "seed" in type(builder).model_fields and builder.seed is None
