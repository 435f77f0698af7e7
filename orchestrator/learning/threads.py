"""How many of torch's threads a learner's minibatches are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.policies import Policy

_WORK_PER_THREAD = 64_000_000
"""Weights times steps of a minibatch that make a further thread worth what it costs to wait for it: below, on the
two-core machine this was measured on, a second thread made small networks slower."""


def threads_for(policy: Policy, run: TrainerConfig, minibatch_steps: int, cores: int) -> int:
    """At least 1, at most as many as there are cores."""
    work = sum(parameter.numel() for parameter in policy.parameters()) * minibatch_steps
    return max(1, min(_most(run, cores), work // _WORK_PER_THREAD))


def _most(run: TrainerConfig, cores: int) -> int:
    if run.shards > 1:
        # Sums by several threads are rounded otherwise: how many there are must not depend on the number of cells.
        return 1
    if run.learning.precision == "bfloat16" and run.versions_behind > 0:
        # Where a core computes quickly with it, operations are so short that threads would mostly wait for the one of
        # them whose core a collector has.
        return cores - 1
    return cores
