"""Environments to be evaluated in, named "tests.evaluated_environments:<function>" so that workers can import them."""

from __future__ import annotations

import os
import random
import signal
import threading
from typing import Any

import numpy as np
import torch

from tests.environments import Counting

GATE = threading.Event()
"""What `make_waiting` waits for before each episode; in this process, so for inline workers."""


class Drawing(Counting):
    """Renders a square that moves with the steps, or fails at that as `fault` says."""

    def __init__(self, fault: str = "", render_mode: str | None = None) -> None:
        super().__init__((6,))
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
        self._fault = fault

    def render(self) -> Any:
        if self._fault == "raise":
            raise OSError("there is no display")
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault == "text":
            return "a picture in words"
        frame = np.zeros((32, 64, 3), np.uint8)
        frame[8:24, self._steps * 4 : self._steps * 4 + 16] = 255
        return frame


class Waiting(Counting):
    """Begins no episode before `GATE` is set."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert GATE.wait(60)
        return super().reset(seed=seed, options=options)


class Careless(Drawing):
    """Its rewards are drawn from the process's generators, and it fails to close."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        reward = random.random() + float(np.random.random()) + float(torch.rand(()))
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        raise OSError("the simulator does not let go")


def make_careless(**options: Any) -> Careless:
    return Careless(**options)


def make_drawing(**options: Any) -> Drawing:
    return Drawing(**options)


def make_waiting() -> Waiting:
    return Waiting()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
