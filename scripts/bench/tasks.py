"""Environments of learning.py that gymnasium does not register by itself; each needs its package."""

from __future__ import annotations

from typing import Any

import gymnasium


def breakout() -> gymnasium.Env[Any, Any]:
    """MinAtar's Breakout: 10 x 10 x 4 bits, 3 actions (package `minatar`)."""
    return _minatar("breakout")


def space_invaders() -> gymnasium.Env[Any, Any]:
    """MinAtar's Space Invaders: 10 x 10 x 6 bits, 4 actions (package `minatar`)."""
    return _minatar("space_invaders")


def half_cheetah_bins() -> gymnasium.Env[Any, Any]:
    """HalfCheetah, each of the six torques one of seven: MultiDiscrete actions (the `mujoco` extra)."""
    from gymnasium.wrappers import DiscretizeAction

    return DiscretizeAction(gymnasium.make("HalfCheetah-v5"), bins=7, multidiscrete=True)


def _minatar(game: str) -> gymnasium.Env[Any, Any]:
    from gymnasium.wrappers import TimeLimit
    from minatar.gym import BaseEnv  # pyright: ignore[reportMissingImports]

    # Its games need not end: with a perfect policy Breakout goes on for ever.
    return TimeLimit(BaseEnv(game, use_minimal_action_set=True), 5000)
