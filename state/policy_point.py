"""When in the course of learning a policy was published."""

from __future__ import annotations

from typing import NamedTuple


class PolicyPoint(NamedTuple):
    """A policy version, or with `minibatches` above 0 the policy after so many of the epoch that began with it."""

    version: int
    minibatches: int = 0

    def __str__(self) -> str:
        return f"{self.version}+{self.minibatches}" if self.minibatches else str(self.version)
