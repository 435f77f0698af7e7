"""Records an episode of a policy as a video, by gymnasium's recorder."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gymnasium
import numpy as np
from gymnasium.utils.save_video import save_video
from gymnasium.wrappers import RecordVideo

from orchestrator.environments import InvalidEnvironment, Step
from orchestrator.environments.make import make_single
from orchestrator.environments.native import NativeEnvironment
from orchestrator.environments.pettingzoo import PettingZooEnvironment
from orchestrator.environments.serial import SerialEnvironment
from orchestrator.evaluation.evaluator import evaluate
from orchestrator.evaluation.plan import check_spaces, closed_in_any_case

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.environments import VectorEnvironment
    from orchestrator.environments.games import Game
    from orchestrator.evaluation.plan import EvaluationPlan
    from orchestrator.policies import Policy

_FRAMES_PER_SECOND = 30
VIDEO_STEPS = 1000
"""Agent steps after which a recording is cut: all frames are in memory until the episode is over."""


def record_episode(policy: Policy, plan: EvaluationPlan, path: Path) -> None:
    """Play the first `VIDEO_STEPS` steps of an episode of the plan, and write it to `path`, an mp4 file.

    The environment must render as rgb_array. Raises what it, or the recorder, raises; then there is no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        single = make_single(plan.environment, {**plan.options, "render_mode": "rgb_array"}, plan.adaptation)
    except InvalidEnvironment as error:
        message = f"one that is recorded is made with render_mode='rgb_array', and renders as arrays: {error}"
        raise InvalidEnvironment(message) from error
    # Beside the file that it will be, so that a video appears whole or not at all.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".recording-") as folder:
        with ExitStack() as cleanup:
            cleanup.enter_context(closed_in_any_case(plan.environment, single))
            videos = str(Path(folder) / "videos")
            if isinstance(single, gymnasium.Env):
                _record_single(policy, plan, single, videos, cleanup)
            else:
                _record_game(policy, plan, single, videos)
        videos = list(Path(folder).glob("videos/*.mp4"))
        if not videos:
            raise RuntimeError(
                f"environment {plan.environment!r} gave no frames when it was rendered;"
                " expected uint8 arrays [height, width, 3] from its render()"
            )
        videos[0].replace(path)


def _record_single(
    policy: Policy, plan: EvaluationPlan, single: gymnasium.Env[Any, Any], folder: str, cleanup: ExitStack
) -> None:
    recorder = RecordVideo(single, folder, episode_trigger=lambda episode: episode == 0)
    environment = SerialEnvironment(plan.environment, [recorder], plan.adaptation)
    cleanup.enter_context(closed_in_any_case(plan.environment, environment))
    _play(policy, plan, environment)
    if recorder.recording:  # closing the recorder would do so too, but only after the environment
        recorder.stop_recording()


def _record_game(policy: Policy, plan: EvaluationPlan, game: Game | NativeEnvironment, folder: str) -> None:
    """The game once, however many agents are in it."""
    rendered = cast("Any", _RenderedGame(game))
    if not isinstance(game, NativeEnvironment):
        _play(policy, plan, PettingZooEnvironment(plan.environment, [rendered], plan.adaptation))
    else:
        _play(policy, plan, rendered)
    frames = [frame for frame in rendered.frames if isinstance(frame, np.ndarray)]
    if frames:
        fps = int((getattr(game, "metadata", None) or {}).get("render_fps", _FRAMES_PER_SECOND))
        save_video(frames, folder, episode_trigger=lambda episode: episode == 0, fps=fps)


def _play(policy: Policy, plan: EvaluationPlan, environment: VectorEnvironment) -> None:
    check_spaces(policy.spaces, environment)
    evaluate(policy, [environment], 1, [plan.seed], plan.deterministic, limit=VIDEO_STEPS)


class _RenderedGame:
    """A game of which each step's picture is kept, until it is over."""

    def __init__(self, game: Any) -> None:
        self._game = game
        self.frames: list[object] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._game, name)

    def reset(self, seed: int | None = None) -> object:
        result = self._game.reset(seed=seed)
        if not self.frames:  # the step that ends a game begins the next
            self.frames.append(self._game.render())
        return result

    def step(self, actions: Any) -> object:
        result = self._game.step(actions)
        # A vector environment has begun the next game in the step that ended this one.
        if not (isinstance(result, Step) and result.games_ended is not None and result.games_ended.any()):
            self.frames.append(self._game.render())
        return result


def video_names(plans: Sequence[EvaluationPlan]) -> list[str]:
    """A name for files for each plan: its own, without what a path cannot hold, and each once."""
    taken: Counter[str] = Counter()
    names: list[str] = []
    for plan in plans:
        name = re.sub(r"[^\w.-]+", "-", plan.key[1]).strip("-.") or "task"
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name}-{taken[name]}")
    return names
