"""Atari games from pixels, as Mnih et al. 2015 and Machado et al. 2018 prepare them for an agent."""

from __future__ import annotations

import importlib
from collections import deque
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import AtariPreprocessing
from numpy.typing import NDArray

_Images = NDArray[np.uint8]


class StackedFrames(gymnasium.Wrapper[_Images, np.int64, _Images, np.int64]):
    """The last `frames` grey images as the channels of one, oldest first: uint8 `[height, width, frames]`.

    Channels come last because convolutions compute fastest so. With `clip_rewards`, of each reward only the sign is
    left, and the info of an episode's last step has the sum of the game's own rewards as `score`.
    """

    def __init__(self, environment: gymnasium.Env[_Images, np.int64], frames: int, clip_rewards: bool) -> None:
        super().__init__(environment)
        if frames < 1:
            raise ValueError(f"{frames} frames are to be stacked, expected at least 1")
        self.observation_space = spaces.Box(0, 255, (*cast("tuple[int, int]", self._image_shape()), frames), np.uint8)
        self._frames: deque[_Images] = deque(maxlen=frames)
        self._clip_rewards = clip_rewards
        self._score = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[_Images, dict[str, Any]]:
        """Begin an episode; the images before the first are the first."""
        image, info = self.env.reset(seed=seed, options=options)
        self._frames.extend([image] * cast("int", self._frames.maxlen))
        self._score = 0.0
        return np.stack(self._frames, axis=-1), info

    def step(self, action: np.int64) -> tuple[_Images, float, bool, bool, dict[str, Any]]:
        image, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(image)
        gain = float(reward)
        if self._clip_rewards:
            self._score += gain
            gain = float(np.sign(gain))
            if terminated or truncated:
                info = info | {"score": self._score}
        return np.stack(self._frames, axis=-1), gain, terminated, truncated, info

    def _image_shape(self) -> tuple[int, ...] | None:
        return self.env.observation_space.shape


def make(
    game: str = "ALE/Pong-v5",
    *,
    frame_skip: int = 4,
    frames: int = 4,
    size: int = 84,
    noop_max: int = 30,
    repeat_action_probability: float = 0.25,
    terminal_on_life_loss: bool = False,
    clip_rewards: bool = True,
) -> gymnasium.Env[_Images, np.int64]:
    """The environment "orchestrator.environments.atari:make": observations are uint8 `[size, size, frames]`.

    An action is held for `frame_skip` frames, the last two of which make one image. The game continues with the
    previous action at `repeat_action_probability` per frame, and begins after up to `noop_max` frames of doing
    nothing. Needs the packages ale_py and opencv: raises DependencyNotInstalled without them.
    """
    try:
        ale = importlib.import_module("ale_py")
        importlib.import_module("cv2")
    except ImportError as error:
        raise gymnasium.error.DependencyNotInstalled(
            f"Atari games need the packages ale_py and opencv-python-headless ({error})"
        ) from error
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    gymnasium.register_envs(ale)
    raw = gymnasium.make(
        game,
        frameskip=1,
        repeat_action_probability=repeat_action_probability,
        obs_type="grayscale",  # nobody looks at the frames in between: the cheapest
        disable_env_checker=True,
    )
    images = AtariPreprocessing(
        raw,
        noop_max=noop_max,
        frame_skip=frame_skip,
        screen_size=size,
        terminal_on_life_loss=terminal_on_life_loss,
    )
    return StackedFrames(cast("gymnasium.Env[_Images, np.int64]", images), frames, clip_rewards)
