"""What takes part in the learner's loop: callbacks at every event of the training, what they track and keep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from losses.minibatch import Minibatch, PolicyEvaluation
    from losses.statistics import LossStatistics
    from state.experience import FieldSpec
    from state.trainer_state import TrainerState

StateValue: TypeAlias = "Tensor | float | int | str | list[StateValue]"

# The events at which the learner calls back, in the order of the loop:
#
#     on_new_training_run                      once
#     for each epoch:
#         on_rollout_start
#             collect
#         on_rollout_end
#             for each update epoch, each minibatch:  compute, observe, backward, step, on_mb_end
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
    """What the learner lends: the live policy, its device, the run's seed, the statistics.

    Where several learners share each batch, each has losses of its own, and `cell` counts the learners from 0.
    `continuous`: whether actions are numbers."""

    policy: nn.Module
    device: torch.device
    seed: int
    statistics: LossStatistics
    cell: int = 0
    continuous: bool = False


class LearnerCallback:
    """Takes part in the learner's loop, between the losses: it watches, tracks, and may end an epoch's updates.

    `name` is unique in a run (by default the class's name in snake_case). Callbacks run in the learner's hot loop; one
    that is not overridden costs nothing. It is given to a run among its losses. Raises `ValueError` for an empty name
    or one with a slash.
    """

    def __init__(self, *, name: str | None = None) -> None:
        self.name = _snake_case(type(self).__name__) if name is None else name
        self.stop_requested = False
        self._stops_when: list[Tensor] = []
        self._context: LossContext | None = None
        if not self.name or "/" in self.name:
            raise ValueError(f"the name of a loss must not be empty or contain a slash, but is {self.name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"

    # What it is made of.

    def experience_fields(self) -> Sequence[FieldSpec]:
        """Fields that collectors shall record for it in addition to those that every experience has."""
        return ()

    def attach(self, context: LossContext) -> None:
        """Called once in the learner, before training; an override calls this one first."""
        self._context = context

    @property
    def context(self) -> LossContext:
        """What `attach` was given; raises `RuntimeError` before it."""
        if self._context is None:
            raise RuntimeError(f"{self.name!r} is not attached to a learner: call attach(LossContext(...)) first")
        return self._context

    # What it tells the learner.

    def track(self, name: str, value: Tensor | float) -> None:
        """Add a scalar to the epoch's mean of `<its name>/<name>`, or of `name` itself where it has a slash.

        Tensors stay on their device; nothing waits for it.
        """
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"the name of a statistic of {self.name!r} must be text, but is {name!r}")
        self.context.statistics.add(name if "/" in name else f"{self.name}/{name}", value)

    def stop_update(self, when: Tensor | None = None) -> None:
        """Ask the learner to end this epoch's updates after the current minibatch: if `when`, a tensor of one element,
        is true then (None: in any case). The learner waits for a tensor only when it has done all else."""
        if when is None:
            self.stop_requested = True
        elif isinstance(when, torch.Tensor) and when.numel() == 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            self._stops_when.append(when)
        else:
            given = f"{tuple(when.shape)}" if isinstance(when, torch.Tensor) else f"{when!r}"  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"stop_update of {self.name!r} was given {given}, expected a tensor of one element, such as that of a"
                " comparison: leave it out to stop in any case"
            )

    def take_stop_conditions(self) -> list[Tensor]:
        """The tensors that `stop_update` was given since the last call."""
        conditions, self._stops_when = self._stops_when, []
        return conditions

    def abandon_epoch(self) -> None:
        """An epoch has ended in an error, at any point: take back what was set up for it, such as autograd's hooks."""

    # What a checkpoint keeps of it.

    def state_dict(self) -> dict[str, StateValue]:
        """All that it must remember over a restart: tensors, numbers, strings and lists of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        """Take over what `state_dict` returned; raises `ValueError` for what it does not know."""
        if state:
            raise ValueError(f"{self.name!r} keeps no state, but was given {sorted(state)}")

    # Callbacks.

    def observe(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> None:
        """What the losses are computed on, for each minibatch; without gradients. Must not change the evaluation."""

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
