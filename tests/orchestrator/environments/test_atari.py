"""Atari games look as gymnasium's own wrappers make them look, with the channels last."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from orchestrator.environments import make_vector
from orchestrator.environments.atari import StackedFrames, make

NAME = "orchestrator.environments.atari:make"


class Numbered(gymnasium.Env[Any, Any]):
    """Shows the number of the step in every pixel; the reward is 3, or -3 in odd steps; ends after 5 steps."""

    observation_space = spaces.Box(0, 255, (2, 3), np.uint8)
    action_space = spaces.Discrete(2)
    _step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self._image(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self._image(), 3.0 if self._step % 2 else -3.0, self._step == 5, False, {"lives": 1}

    def _image(self) -> Any:
        return np.full((2, 3), self._step, np.uint8)


def test_the_last_frames_are_the_channels_and_an_episode_begins_with_its_first() -> None:
    environment = StackedFrames(Numbered(), 3, clip_rewards=False)
    for _ in range(2):
        shown = [environment.reset()[0]] + [environment.step(0)[0] for _ in range(4)]
        assert [list(image[1, 2]) for image in shown] == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
        assert all(environment.observation_space.contains(image) for image in shown)


def test_of_clipped_rewards_the_sign_is_left_and_the_score_tells_their_sum() -> None:
    environment = StackedFrames(Numbered(), 1, clip_rewards=True)
    for _ in range(2):
        environment.reset()
        steps = [environment.step(0) for _ in range(5)]
        assert [step[1] for step in steps] == [1.0, -1.0, 1.0, -1.0, 1.0]
        assert [step[4] for step in steps] == [{"lives": 1}] * 4 + [{"lives": 1, "score": 3.0}]


def test_without_clipping_rewards_and_infos_are_the_games() -> None:
    environment = StackedFrames(Numbered(), 1, clip_rewards=False)
    environment.reset()
    assert [environment.step(0)[1:] for _ in range(5)][-1] == (3.0, True, False, {"lives": 1})


def test_less_than_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="0 frames are to be stacked"):
        StackedFrames(Numbered(), 0, clip_rewards=False)


def test_pong_is_what_gymnasiums_wrappers_make_of_it() -> None:
    ale_py = pytest.importorskip("ale_py", reason="ale_py is not installed")
    pytest.importorskip("cv2", reason="opencv is not installed")
    gymnasium.register_envs(ale_py)
    ours = make()
    raw = gymnasium.make("ALE/Pong-v5", frameskip=1)
    theirs = FrameStackObservation(AtariPreprocessing(raw), 4)
    assert ours.observation_space == spaces.Box(0, 255, (84, 84, 4), np.uint8)
    observation, expected = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    for action in np.random.default_rng(0).integers(0, 6, 100):
        np.testing.assert_array_equal(observation, expected.transpose(1, 2, 0))
        observation, reward, terminated, truncated, _ = ours.step(action)
        expected, *theirs_of_it, _ = theirs.step(action)
        assert [reward, terminated, truncated] == theirs_of_it
    ours.close()
    theirs.close()


def test_pong_can_be_named_as_an_environment_with_options() -> None:
    pytest.importorskip("ale_py", reason="ale_py is not installed")
    pytest.importorskip("cv2", reason="opencv is not installed")
    environment = make_vector(NAME, 2, {"frames": 2, "size": 40})
    assert environment.reset(1).shape == (2, 40, 40, 2)  # type: ignore[union-attr]
    step = environment.step(np.zeros(2, np.int64))
    assert step.reward.tolist() == [0.0, 0.0]
    environment.close()
