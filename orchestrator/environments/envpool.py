"""EnvPool's environments, named "envpool/CartPole-v1": simulators in C++, which threads step side by side."""

from __future__ import annotations

import importlib
import threading
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from gymnasium.vector import AutoresetMode, VectorEnv

from orchestrator.config.error import nearest
from orchestrator.environments.spaces import InvalidEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable

_BOOKKEEPING = ("env_id", "players")
_OWN_OPTIONS = {"seed": "copies are seeded from the run's", "batch_size": "all copies step together"}
_catching = threading.Lock()


class EnvPoolVector(VectorEnv[Any, Any, Any]):
    """`num_envs` copies of EnvPool's `task`, made with `options`, which at most `num_threads` threads step.

    EnvPool seeds its copies when they are made: a reset with a seed makes them anew. Which thread steps a copy changes
    nothing. A copy whose episode has ended is reset by the next step.
    """

    def __init__(self, task: str, num_envs: int, num_threads: int, options: dict[str, Any]) -> None:
        for name, cure in _OWN_OPTIONS.items():
            if name in options:
                raise ValueError(f"its option {name!r} can't be set: {cure}")
        if num_threads < 0:
            raise ValueError(f"num_threads is {num_threads}, expected 0 (one for each core) or more")
        envpool = importlib.import_module("envpool")
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = options.get("render_mode")
        self._make = partial(
            envpool.make_gymnasium, task, num_envs=num_envs, num_threads=min(num_threads, num_envs), **options
        )
        self._pool = self._made(0)
        players = self._pool.config.get("max_num_players", 1)
        if players > 1:
            raise ValueError(f"it has {players} players, expected one")
        self.single_observation_space = self._pool.observation_space
        self.single_action_space = self._pool.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._pool.close()
            self._pool = self._made(seed)
        observation, infos = self._pool.reset()
        return observation, _without_bookkeeping(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.send(actions)
        return self.recv()

    def send(self, actions: Any) -> None:
        """Have the threads begin a step."""
        self._pool.send(actions)

    def recv(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """What the step gave."""
        observation, reward, terminated, truncated, infos = self._pool.recv()
        return observation, reward, terminated, truncated, _without_bookkeeping(infos)

    def render(self) -> Any:
        return self._pool.render(env_ids=range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        self._pool.close()

    def _made(self, seed: int) -> Any:
        # Bounds of its spaces lose digits as float32. What is caught is the whole process's: by one thread at a time.
        with _catching, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            pool = self._make(seed=seed)
            assert pool.observation_space is not None
            assert pool.action_space is not None
            return pool


def find_task(task: str) -> Callable[..., EnvPoolVector]:
    """What makes copies of EnvPool's `task`. Raises InvalidEnvironment for one that it does not have, and ImportError
    where EnvPool is not installed."""
    known: list[str] = importlib.import_module("envpool").list_all_envs()
    if task not in known:
        raise InvalidEnvironment(f"environment 'envpool/{task}': EnvPool has no {task!r}: {nearest(task, known)}")

    def make(
        num_envs: int, num_threads: int = 1, max_episode_steps: int | None = None, **options: Any
    ) -> EnvPoolVector:
        if max_episode_steps is not None:
            options["max_episode_steps"] = max_episode_steps
        return EnvPoolVector(task, num_envs, num_threads, options)

    return make


def _without_bookkeeping(infos: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in infos.items() if name not in _BOOKKEEPING}
