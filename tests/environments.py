"""Small environments with known behavior, named "tests.environments:<function>" so that workers can import them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

OBSERVATION_SPACES: dict[str, gymnasium.Space[Any]] = {
    "vector": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "dict": spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (4, 4, 1), np.uint8),
            "compass": spaces.Discrete(4, start=1),
            "position": spaces.Box(-np.inf, np.inf, (2,), np.float64),
        }
    ),
    "discrete": spaces.Discrete(5, start=-2),
    "multidiscrete": spaces.MultiDiscrete([3, 2], start=[1, 0]),
    "multibinary": spaces.MultiBinary(4),
    "tuple": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))),
}

ACTION_SPACES: dict[str, gymnasium.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "shifted": spaces.Discrete(3, start=5),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(np.array([-0.5, -1.0]), np.array([0.5, np.inf]), dtype=np.float64),
    "grid": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    "multibinary": spaces.MultiBinary(3),
}


class Wandering(gymnasium.Env[Any, Any]):
    """Random observations; rewards that depend on the action; episodes that end at random, in both ways.

    With `reuse`, the array of the observation is one and the same at every step, as some environments do it.
    """

    def __init__(
        self,
        observation: str = "vector",
        action: str = "discrete",
        terminate: float = 0.1,
        truncate: float = 0.1,
        reuse: bool = False,
    ) -> None:
        self.observation_space = OBSERVATION_SPACES[observation]
        self.action_space = ACTION_SPACES[action]
        self._terminate = terminate
        self._truncate = truncate
        self._reuse = reuse
        self._reused: Any = None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {"steps": 0, "kind": "reset"}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self._steps += 1
        reward = float(np.sum(action)) / 7 + self.np_random.normal()
        terminated = bool(self.np_random.random() < self._terminate)
        truncated = bool(self.np_random.random() < self._truncate)
        info = {"steps": self._steps, "kind": "step", "nested": {"reward": reward, "pair": np.array([reward, 1.0])}}
        return self._observe(), reward, terminated, truncated, info

    def _observe(self) -> Any:
        drawn = _draw(self.observation_space, self.np_random)
        if self._reuse and isinstance(self._reused, np.ndarray):
            self._reused[...] = drawn
        else:
            self._reused = drawn
        return self._reused


def _draw(space: gymnasium.Space[Any], random: np.random.Generator) -> Any:
    match space:
        case spaces.Dict():
            return {key: _draw(leaf, random) for key, leaf in space.items()}
        case spaces.Tuple():
            return tuple(_draw(part, random) for part in space)
        case spaces.Box() if space.dtype == np.uint8:
            return random.integers(0, 256, space.shape, np.uint8)
        case spaces.Box():
            return random.normal(size=space.shape)
        case spaces.Discrete():
            return space.start + random.integers(space.n)
        case spaces.MultiDiscrete():
            return space.start + random.integers(space.nvec)
        case _:
            return random.integers(0, 2, space.shape, np.int8)


class Counting(gymnasium.Env[Any, Any]):
    """Episodes of the given `lengths` in turn; the reward of the k-th step is k, so a return is n (n + 1) / 2."""

    def __init__(self, lengths: Sequence[int] = (3, 5), truncate: bool = False) -> None:
        self.observation_space = spaces.Box(0.0, np.inf, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._lengths = tuple(lengths)
        self._truncate = truncate
        self._episode = -1
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._episode += 1
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        ended = self._steps == self._lengths[self._episode % len(self._lengths)]
        info = {"score": self._steps * 10, "name": "counting", "nested": {"bonus": np.float64(0.5)}}
        observation = np.full(1, self._steps, np.float32)
        return observation, float(self._steps), ended and not self._truncate, ended and self._truncate, info


class Faulty(Counting):
    """Does what an environment must not: see `fault`."""

    def __init__(self, fault: str) -> None:
        super().__init__((4,), truncate=True)
        self._fault = fault
        self._taken = 0
        if fault == "constructor":
            raise OSError("the level file is missing")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        if self._fault == "reset":
            raise OSError("the simulator is gone")
        return (np.zeros(2, np.float32) if self._fault == "shape" else observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self._taken += 1
        match self._fault:
            case "step":
                raise OSError("the simulator is gone")
            case "hundredth step" if self._taken == 100:
                raise OSError("the simulator is gone")
            case "reward":
                return observation, "much", terminated, truncated, info
            case "no reward":
                return observation, None, terminated, truncated, info
            case "nan reward":
                return observation, float("nan"), terminated, truncated, info
            case "infinite observation":
                return observation + np.inf, reward, terminated, truncated, info
            case "nan final observation":
                return observation * (np.nan if truncated else 1.0), reward, terminated, truncated, info
            case _:
                return observation, reward, terminated, truncated, info


def make_wandering(**options: Any) -> Wandering:
    return Wandering(**options)


def make_unsupported(role: str) -> Wandering:
    """Has a space that no agent is told of, for its observations or its actions."""
    environment = Wandering()
    setattr(environment, f"{role}_space", spaces.Text(3))
    return environment


def make_counting(**options: Any) -> Counting:
    return Counting(**options)


def make_faulty(fault: str) -> Faulty:
    return Faulty(fault)


def make_opaque() -> Counting:
    """An environment whose state is not plain data."""
    environment = Counting((30, 50))
    environment.simulator = object()  # pyright: ignore[reportAttributeAccessIssue]
    return environment


class NoModule(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise AttributeError("__module__")


class Foreign(metaclass=NoModule):
    """As the classes of SWIG's extension modules, which do not say what module they are of."""


def make_foreign() -> Counting:
    environment = Counting()
    environment.handle = object.__new__(Foreign)  # type: ignore[attr-defined]
    return environment


def make_nothing() -> None:
    return None


def _vectorised(make: Callable[..., gymnasium.Env[Any, Any]], mode: AutoresetMode) -> Callable[..., SyncVectorEnv]:
    def make_vector(num_envs: int, **options: Any) -> SyncVectorEnv:
        return SyncVectorEnv([lambda: make(**options)] * num_envs, autoreset_mode=mode)

    return make_vector


for _name, _make in (("Wandering", make_wandering), ("Counting", make_counting), ("Faulty", make_faulty)):
    for _mode in AutoresetMode:
        # "Wandering/NextStep-v0", "Counting/SameStep-v0" and so on
        gymnasium.register(f"{_name}/{_mode.value}-v0", _make, vector_entry_point=_vectorised(_make, _mode))
