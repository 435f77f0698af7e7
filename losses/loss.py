"""The base of all losses: what to minimize on a minibatch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Self

from losses.callback import LearnerCallback
from losses.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from losses.minibatch import Minibatch, PolicyEvaluation


class Loss(LearnerCallback):
    """One term of what the learner minimizes; subclasses define `compute` and any of the callbacks.

    `weight` multiplies the result of `compute` in the total, and `schedule` says in which epochs it is computed.
    Callbacks are called whatever the schedule says.

    Raises `ValueError` as `LearnerCallback`, and for a weight that is not finite.
    """

    corrects_staleness: ClassVar[bool] = False
    """Whether it corrects, by the recorded `log_prob`, for experience of an older policy."""
    policy_gradient: ClassVar[bool] = False
    """Whether it follows the policy gradient, which stale experience biases unless it is corrected for."""
    value_gradient: ClassVar[bool] = False
    """Whether it learns the value, whose gradient a network must then let through."""
    needs_segments: ClassVar[bool] = False
    """Whether its minibatches must hold whole segments `[n, horizon, ...]`."""
    capturable: ClassVar[bool] = False
    """Whether its `compute` can be recorded once and repeated by the device (`learning.graphs`): it does the same
    operations on each minibatch of a size and its evaluation, whatever they hold and whatever the epoch; counts no
    rows that are not valid; changes no tensor and keeps none; and reads nothing from the device (to stop an update, it
    calls `stop_update(when)`). It is of the class that defines `compute`, and not inherited by one that
    defines another."""
    of_policy: str | None = None
    """Whose agents it learns from, where types of agents have policies of their own; None: from all, together."""

    def __init__(self, *, name: str | None = None, weight: float = 1.0, schedule: Schedule | None = None) -> None:
        super().__init__(name=name)
        self.weight = weight
        self.schedule = Schedule() if schedule is None else schedule
        if not math.isfinite(weight):
            raise ValueError(f"the weight of the loss {self.name!r} must be finite, but is {weight}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, weight={self.weight})"

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        """The loss of one minibatch: a scalar with gradients, before `weight`."""
        raise NotImplementedError(f"{type(self).__name__} does not define compute(minibatch, evaluation)")

    def for_policy(self, policy: str) -> Self:
        """Itself, to learn from the agents of that policy only, whose name precedes its own: `seeker/ppo_actor`.

        Its minibatches then have no other rows. In the total it counts by their share of all rows.
        """
        self.of_policy, self.name = policy, f"{policy}/{self.name.rpartition('/')[2]}"
        return self

    def active_at(self, epoch: int) -> bool:
        """Whether the loss is computed in `epoch`."""
        return self.schedule.active_at(epoch)
