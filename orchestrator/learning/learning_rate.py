"""The learning rate of every epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

from orchestrator.config.paths import PATH

if TYPE_CHECKING:
    from collections.abc import Mapping

RateSchedule: TypeAlias = Literal["constant", "linear", "cosine", "adaptive"]

KL = "approx_kl"
"""What losses track the divergence as."""
_TOLERANCE = 2.0
_STEP = 1.5
LEAST = 0.01
"""Of the configured rate, which an adaptive one never falls below."""


class LearningRate:
    """What an epoch is learned with, by its place in the run, or by how far the policy moved in the epochs before.

    The adaptive rate is 1.5 times lower after an epoch over whose minibatches the policy was on average more than twice
    the `target` (nats) from where the epoch began, and 1.5 times higher after one with less than half of it: at most
    what is configured, at least a hundredth of that. (Schulman et al. 2017, section 4, steer the coefficient of a KL
    penalty by such a rule.) It waits for the device no more than the statistics do, once an epoch.
    """

    def __init__(self, configured: float, schedule: RateSchedule, target: float) -> None:
        self._configured = configured
        self._schedule: RateSchedule = schedule
        self._target = target
        self.adaptation = 1.0
        """The adaptive rate's share of the configured one."""
        self.warnings: dict[str, str] = {}
        """By what they are about, each to be logged once."""

    def at(self, progress: float, scale: float = 1.0) -> float:
        """The rate of an epoch, where so much of the run (0 to 1) is done, times `scale`."""
        share = self.adaptation if self._schedule == "adaptive" else schedule_factor(self._schedule, progress)
        return self._configured * share * scale

    def learned(self, statistics: Mapping[str, float]) -> None:
        """Take the means of an epoch into account."""
        if self._schedule != "adaptive":
            return
        known = [mean for name, mean in statistics.items() if name.rpartition("/")[2] == KL]
        if not known:
            self.warnings["adaptive learning rate"] = (
                f"{PATH.learning.learning_rate_schedule} is 'adaptive', but no loss tells how far the policy has moved:"
                f" the learning rate stays as it is; have one track {KL!r}, as ppo_actor does"
            )
            return
        divergence = max(known, key=lambda mean: math.inf if math.isnan(mean) else mean)
        if not divergence <= _TOLERANCE * self._target:
            self.adaptation = max(LEAST, self.adaptation / _STEP)
        elif divergence < self._target / _TOLERANCE:
            self.adaptation = min(1.0, self.adaptation * _STEP)


def schedule_factor(schedule: RateSchedule, progress: float) -> float:
    """What the learning rate is multiplied with when `progress` (0 to 1) of the run is done."""
    progress = min(max(progress, 0.0), 1.0)
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
