"""Environments whose returns tell which actions were taken, for each kind of space and network; named
"tests.used_environments:make"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

STEPS = 12
_VECTOR = spaces.Box(-3.0, 3.0, (5,), np.float32)
_IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)
_NESTED = spaces.Dict(
    {
        "eyes": spaces.Dict({"left": _VECTOR, "right": spaces.Box(-1.0, 1.0, (2, 2), np.float64)}),
        "about": spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 4], start=[1, 5])]),
        "bits": spaces.MultiBinary(3),
        7: spaces.Box(0, 9, (2,), np.int16),
    }
)
_MASKED = spaces.Dict({"place": _VECTOR, "mask": spaces.MultiBinary(5)})


@dataclass(frozen=True)
class Case:
    """What is observed and done, and the settings for it."""

    observation: spaces.Space[Any]
    action: spaces.Space[Any]
    policy: dict[str, Any] = field(default_factory=dict[str, Any])
    action_mask: str | None = None


CASES = {
    "vector": Case(_VECTOR, spaces.Discrete(4)),
    "normalized": Case(_VECTOR, spaces.Discrete(4, start=2), {"normalize_observations": True}),
    "number": Case(spaces.Discrete(6, start=3), spaces.Discrete(3)),
    "nested": Case(_NESTED, spaces.MultiDiscrete([3, 4]), {"normalize_observations": True}),
    "bits": Case(_VECTOR, spaces.MultiBinary([2, 2])),
    "matrix": Case(_VECTOR, spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 1], [2, 3]])),
    "clipped": Case(_VECTOR, spaces.Box(np.array([-0.1, 0.0]), np.array([0.1, 7.0]), dtype=np.float64)),
    "squashed": Case(_VECTOR, spaces.Box(np.float32([-2, 0]), np.float32([5, np.inf])), {"box_actions": "squash"}),
    "scalar": Case(_VECTOR, spaces.Box(-1.0, 1.0, (), np.float32)),
    "whole": Case(_VECTOR, spaces.Box(-3, 4, (2,), np.int8)),
    "image": Case(_IMAGE, spaces.Discrete(3)),
    "image and vector": Case(spaces.Dict({"image": _IMAGE, "place": _VECTOR}), spaces.Box(-1.0, 1.0, (2,))),
    "normalized numbers": Case(
        _VECTOR, spaces.Box(-1.0, 1.0, (2,)), {"normalize_observations": True, "activation": "silu"}
    ),
    "memory": Case(_VECTOR, spaces.Discrete(4), {"network": "lstm", "lstm_size": 8}),
    "memory of images": Case(_IMAGE, spaces.MultiDiscrete([2, 3]), {"network": "lstm", "lstm_size": 8}),
    "tokens": Case(spaces.Box(0, 255, (20, 3), np.uint8), spaces.Discrete(3), {"network": "tokens"}),
    "masked": Case(_MASKED, spaces.Discrete(5), action_mask="mask"),
    "masked by numbers": Case(
        spaces.Dict({"place": _VECTOR, "mask": spaces.Tuple([spaces.Discrete(2)] * 5)}),
        spaces.Discrete(5),
        action_mask="mask",
    ),
    "masked by infos": Case(_VECTOR, spaces.MultiDiscrete([2, 3]), action_mask="info/mask"),
    "own": Case(_VECTOR, spaces.Discrete(4), {"network": "tests.small_networks:make_shared"}),
    "own with memory": Case(_VECTOR, spaces.Discrete(4), {"network": "tests.small_networks:make_recurrent"}),
}


class Telling(gymnasium.Env[Any, Any]):
    """Each action counts with another weight in each step, so that no two sequences of actions have the same return."""

    def __init__(self, case: str) -> None:
        self.observation_space, self.action_space = CASES[case].observation, CASES[case].action
        self._masked = CASES[case].action_mask is not None
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self._step += 1
        numbers = np.asarray(action, np.float64).ravel()
        reward = float(numbers @ self.np_random.uniform(0.5, 1.5, numbers.size))
        observation, info = self._observe()
        return observation, reward, self._step >= STEPS, False, info

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        observation = self.observation_space.sample()
        mask = self.np_random.integers(0, 2, 5).astype(np.int8)
        mask[[0, 3]] = 1
        if self._masked and isinstance(observation, dict):
            observation["mask"] = mask if isinstance(observation["mask"], np.ndarray) else tuple(mask.astype(np.int64))
        return observation, {"mask": mask}


def make(case: str) -> Telling:
    return Telling(case)
