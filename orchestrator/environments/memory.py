"""A task that needs memory: recall a cue that was shown only once, at the beginning of the episode."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


class RecallEnvironment(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Shows one of `cues` cues, then `delay` blank observations, then asks: the action must name the cue.

    The observation is the cue's one-hot code followed by a flag that is 1 when the answer is due. Every
    reward is 0 but the answer's: 1 if it is right, -1 if not. A policy without memory has a mean return
    of 2 / `cues` - 1, one that remembers 1. An episode takes `delay` + 2 agent steps.
    """

    def __init__(self, cues: int = 2, delay: int = 5) -> None:
        if cues < 2 or delay < 0:
            raise ValueError(f"cues is {cues} and delay is {delay}, expected at least 2 cues and a delay of 0 or more")
        self.observation_space = spaces.Box(0.0, 1.0, (cues + 1,), np.float32)
        self.action_space = spaces.Discrete(cues)
        self._cues = cues
        self._delay = delay
        self._cue = 0
        self._elapsed = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._cue = int(self.np_random.integers(self._cues))
        self._elapsed = 0
        observation = np.zeros(self._cues + 1, np.float32)
        observation[self._cue] = 1.0
        return observation, {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        asked = self._elapsed == self._delay + 1
        self._elapsed += 1
        observation = np.zeros(self._cues + 1, np.float32)
        observation[-1] = self._elapsed == self._delay + 1
        reward = (1.0 if int(action) == self._cue else -1.0) if asked else 0.0
        return observation, reward, asked, False, {}


def make(cues: int = 2, delay: int = 5) -> RecallEnvironment:
    """The environment "orchestrator.environments.memory:make"."""
    return RecallEnvironment(cues, delay)
