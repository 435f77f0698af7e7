"""What documents name as code of their reader's, and do not show: added to the reader's `own.py`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from orchestrator import Hook
from state import TrainerState


def shaped_reward(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TransformReward(env, lambda reward: 2.0 * float(reward))


shaped = shaped_reward


class Chess(gymnasium.Env[Any, Any]):
    """Some other rules."""

    observation_space = gymnasium.spaces.Dict(
        {"board": gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32), "action_mask": gymnasium.spaces.MultiBinary(3)}
    )
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.moves = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.moves += 1
        return self.observe(), 1.0, self.moves == 9, False, {}

    def observe(self) -> Any:
        board = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"board": board, "action_mask": np.array([1, self.moves % 2, 0], np.int8)}


def chess() -> Chess:
    return Chess()


def make_maze(size: int) -> gymnasium.Env[Any, Any]:
    """As large as it is to be; acted in as in CartPole."""
    assert size in (5, 15)
    return gymnasium.make("CartPole-v1")


def slow_simulator() -> gymnasium.Env[Any, Any]:
    """As quick as any here."""
    return gymnasium.make("CartPole-v1")


class Announce(Hook):
    async def on_training_end(self, state: TrainerState) -> None:
        print("trained", state.epoch)


class Csv:
    def open(self, run: Any) -> None: ...
    def write(self, record: Any) -> None: ...
    def close(self) -> None: ...
