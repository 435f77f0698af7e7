"""How many of torch's threads a learner's minibatches are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.policies import Policy

_WORK_PER_THREAD = 64_000_000
"""Weights times steps of a minibatch that make a further thread worth what it costs to wait for it: below, on the
two-core machine this was measured on, a second thread made small networks slower."""


def threads_for(policy: Policy, minibatch_steps: int, most: int) -> int:
    """At least 1, at most `most`."""
    work = sum(parameter.numel() for parameter in policy.parameters()) * minibatch_steps
    return max(1, min(most, work // _WORK_PER_THREAD))
