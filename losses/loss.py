"""The base of all losses: what to minimise on a minibatch, and callbacks at every event of the training loop."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from torch import Tensor

from losses.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from losses.minibatch import Minibatch, PolicyEvaluation
    from losses.statistics import LossStatistics
    from state.experience import FieldSpec
    from state.trainer_state import TrainerState

StateValue: TypeAlias = "Tensor | float | int | str | list[StateValue]"

# The events at which a loss is called, in the order of the loop:
#
#     on_new_training_run                      once
#     for each epoch:
#         on_rollout_start
#             collect
#         on_rollout_end
#             for each update epoch, each minibatch:  compute, backward, step, on_mb_end
#         on_train_phase_end
#         epoch += 1
#         on_epoch_end
CALLBACKS = (
    "on_new_training_run",
    "on_rollout_start",
    "on_rollout_end",
    "on_mb_end",
    "on_train_phase_end",
    "on_epoch_end",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossContext:
    """What the learner lends to its losses: the live policy, its device, the run's seed, the statistics."""

    policy: nn.Module
    device: torch.device
    seed: int
    statistics: LossStatistics


class Loss:
    """One term of what the learner minimises; subclasses define `compute` and any of the callbacks.

    `name` is unique in a run (by default the class's name in snake_case), `weight` multiplies the result of
    `compute` in the total, and `schedule` says in which epochs it is computed. Callbacks run in the learner's
    hot loop whatever the schedule says; one that is not overridden costs nothing.

    Raises `ValueError` for an empty name, a name with a slash, or a weight that is not finite.
    """

    corrects_staleness: ClassVar[bool] = False
    """Whether it corrects, by the recorded `log_prob`, for experience of an older policy."""
    policy_gradient: ClassVar[bool] = False
    """Whether it follows the policy gradient, which stale experience biases unless it is corrected for."""
    value_gradient: ClassVar[bool] = False
    """Whether it learns the value, whose gradient a network must then let through."""
    needs_segments: ClassVar[bool] = False
    """Whether its minibatches must hold whole segments `[n, horizon, ...]`."""

    def __init__(self, *, name: str | None = None, weight: float = 1.0, schedule: Schedule | None = None) -> None:
        self.name = _snake_case(type(self).__name__) if name is None else name
        self.weight = weight
        self.schedule = Schedule() if schedule is None else schedule
        self.stop_requested = False
        self._context: LossContext | None = None
        if not self.name or "/" in self.name:
            raise ValueError(f"the name of a loss must not be empty or contain a slash, but is {self.name!r}")
        if not math.isfinite(weight):
            raise ValueError(f"the weight of the loss {self.name!r} must be finite, but is {weight}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, weight={self.weight})"

    # What it is made of.

    def experience_fields(self) -> Sequence[FieldSpec]:
        """Fields that collectors shall record for this loss beside the ones that every experience has."""
        return ()

    def attach(self, context: LossContext) -> None:
        """Called once in the learner, before training; an override calls this one first."""
        self._context = context

    @property
    def context(self) -> LossContext:
        """What `attach` was given; raises `RuntimeError` before it."""
        if self._context is None:
            raise RuntimeError(
                f"the loss {self.name!r} is not attached to a learner: call attach(LossContext(...)) first"
            )
        return self._context

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        """The loss of one minibatch: a scalar with gradients, before `weight`."""
        raise NotImplementedError(f"{type(self).__name__} does not define compute(minibatch, evaluation)")

    def active_at(self, epoch: int) -> bool:
        """Whether the loss is computed in `epoch`."""
        return self.schedule.active_at(epoch)

    # What it tells the learner.

    def track(self, name: str, value: Tensor | float) -> None:
        """Add a scalar to the epoch's mean of `<loss>/<name>`, or of `name` itself where it has a slash.

        Tensors stay on their device; nothing waits for it.
        """
        self.context.statistics.add(name if "/" in name else f"{self.name}/{name}", value)

    def stop_update(self) -> None:
        """Ask the learner to end this epoch's updates after the current minibatch."""
        self.stop_requested = True

    def abandon_epoch(self) -> None:
        """An epoch has ended in an error, at any point: take back what was set up for it, such as autograd's hooks."""

    # What a checkpoint keeps of it.

    def state_dict(self) -> dict[str, StateValue]:
        """All that the loss must remember over a restart: tensors, numbers, strings and lists of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        """Take over what `state_dict` returned; raises `ValueError` for what this loss does not know."""
        if state:
            raise ValueError(f"the loss {self.name!r} keeps no state, but was given {sorted(state)}")

    # Callbacks.

    def on_new_training_run(self, state: TrainerState) -> None:
        """Training begins."""

    def on_rollout_start(self, state: TrainerState) -> None:
        """An epoch begins."""

    def on_rollout_end(self, state: TrainerState) -> None:
        """The epoch's experience is complete; its statistics are in `state.rollout_stats`."""

    def on_mb_end(self, state: TrainerState) -> None:
        """The optimizer has stepped on one minibatch."""

    def on_train_phase_end(self, state: TrainerState) -> None:
        """The epoch's last minibatch is done; the training timer still runs."""

    def on_epoch_end(self, state: TrainerState) -> None:
        """The epoch is over; everything about it is in `state`."""


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
