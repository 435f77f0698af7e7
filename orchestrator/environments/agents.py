"""What the agents of a game are called, and what statistics of their policies are."""

from __future__ import annotations

import re
from collections.abc import Iterable

SINGLE_AGENT = ("",)
"""The agents of a game with one agent, which has no name."""

SHARE = "share_of_steps"
"""The statistic of a policy, where types of agents have their own, that says what part of an epoch's agent steps its
agents have taken."""

_NUMBER = re.compile(r"[-_ ]?\d+$")


def agent_type(name: str) -> str:
    """What agents whose names differ only by a number have in common: "red" for "red_0" and "red_1"."""
    return _NUMBER.sub("", name) or "agent"


def policies_in(stats: Iterable[str]) -> list[str]:
    """The policies that have statistics of their own, among the names of all."""
    return [name.removesuffix(f"/{SHARE}") for name in stats if name.endswith(f"/{SHARE}")]
