"""What the agents of a game are called."""

from __future__ import annotations

import re

SINGLE_AGENT = ("",)
"""The agents of a game with one agent, which has no name."""

_NUMBER = re.compile(r"[-_ ]?\d+$")


def agent_type(name: str) -> str:
    """What agents whose names differ only by a number have in common: "red" for "red_0" and "red_1"."""
    return _NUMBER.sub("", name) or "agent"
