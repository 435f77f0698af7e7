"""Several losses as the one that a learner minimises: a weighted sum of those that are active in the epoch."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from losses.loss import CALLBACKS, Loss, StateValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

    from losses.loss import LossContext
    from losses.minibatch import Minibatch, PolicyEvaluation
    from state.experience import FieldSpec
    from state.trainer_state import TrainerState


class LossSet:
    """The losses of a run, in order.

    Raises `ValueError` where there are none, where two share a name, or where two declare one experience field
    differently; `TypeError` for what is not a loss or does not define `compute`.
    """

    def __init__(self, losses: Iterable[Loss]) -> None:
        self.losses = tuple(losses)
        _check(self.losses)
        self._by_name = {loss.name: loss for loss in self.losses}
        self._fields = _merged_fields(self.losses)
        # Found once: the hot loop must not pay for callbacks that nobody has overridden.
        self._callbacks = {
            callback: tuple(
                getattr(loss, callback)
                for loss in self.losses
                if getattr(type(loss), callback) is not getattr(Loss, callback)
            )
            for callback in CALLBACKS
        }
        self._active_epoch: int | None = None
        self._active: tuple[Loss, ...] = ()

    def __repr__(self) -> str:
        return f"LossSet({', '.join(self._by_name)})"

    def __iter__(self) -> Iterator[Loss]:
        return iter(self.losses)

    def __len__(self) -> int:
        return len(self.losses)

    def __getitem__(self, name: str) -> Loss:
        """The loss called `name`; raises `KeyError` that lists the names there are."""
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(f"there is no loss {name!r}, only {list(self._by_name)}") from None

    # What the losses ask for.

    @property
    def needs_segments(self) -> bool:
        """Whether any of them needs minibatches of whole segments."""
        return any(loss.needs_segments for loss in self.losses)

    @property
    def uncorrected(self) -> tuple[str, ...]:
        """Names of the policy-gradient losses that do not correct for stale experience."""
        return tuple(loss.name for loss in self.losses if loss.policy_gradient and not loss.corrects_staleness)

    def experience_fields(self) -> tuple[FieldSpec, ...]:
        """The fields that all losses together ask collectors to record, each once."""
        return self._fields

    # The hot loop.

    def attach(self, context: LossContext) -> None:
        """Lend the learner's things to every loss."""
        for loss in self.losses:
            loss.attach(context)

    def overriding(self, callback: str) -> tuple[Callable[[TrainerState], None], ...]:
        """The callbacks of that name that losses have overridden, in order, ready to call."""
        try:
            return self._callbacks[callback]
        except KeyError:
            raise KeyError(f"losses have no callback {callback!r}, only {list(CALLBACKS)}") from None

    def active(self, epoch: int) -> tuple[Loss, ...]:
        """The losses that are computed in `epoch`; with none, there is nothing to train on."""
        if epoch != self._active_epoch:
            self._active = tuple(loss for loss in self.losses if loss.active_at(epoch))
            self._active_epoch = epoch
        return self._active

    def begin_epoch(self) -> None:
        """Forget the requests to stop; called before the updates of an epoch."""
        for loss in self.losses:
            loss.stop_requested = False

    def abandon_epoch(self) -> None:
        """Tell every loss that the epoch has ended in an error."""
        for loss in self.losses:
            loss.abandon_epoch()

    @property
    def stop_requested(self) -> bool:
        """Whether a loss has asked to end this epoch's updates."""
        return any(loss.stop_requested for loss in self.losses)

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> tuple[Tensor, Tensor]:
        """The weighted sum over the losses active in the minibatch's epoch, and each of them alone.

        Returns a scalar with gradients, and `[active]` without gradients or weights, in the order of
        `active(epoch)`. Raises `ValueError` where a loss is no scalar, or changes the `evaluation` that the next one
        is given, and `RuntimeError` where none is active.
        """
        active = self.active(minibatch.epoch)
        alone = len(active) == 1
        evaluated = (evaluation.log_prob, evaluation.entropy, evaluation.value, evaluation.action_parameters)
        versions = [tensor._version for tensor in evaluated]
        total: Tensor | None = None
        components: list[Tensor] = []
        for loss in active:
            # No loss sees what another does to its minibatch.
            value = loss.compute(minibatch if alone else minibatch.again(), evaluation)
            if loss is not active[-1] and [tensor._version for tensor in evaluated] != versions:
                raise ValueError(
                    f"the loss {loss.name!r} changed a tensor of the policy's evaluation in place, which the losses"
                    " after it are given too: change a clone() of it"
                )
            if value.dim() != 0:
                raise ValueError(
                    f"the loss {loss.name!r} returned a tensor of shape {tuple(value.shape)}, but must return "
                    "a scalar, such as minibatch.mean(per_step)"
                )
            components.append(value.detach())
            weighted = value if loss.weight == 1.0 else value * loss.weight
            total = weighted if total is None else total + weighted
        if total is None:
            raise RuntimeError(f"no loss is active in epoch {minibatch.epoch}: skip the epoch's updates")
        return total, torch.stack(components)

    # What a checkpoint keeps of them.

    def state_dict(self) -> dict[str, dict[str, StateValue]]:
        """Every loss's state by its name."""
        return {loss.name: loss.state_dict() for loss in self.losses}

    def load_state_dict(self, state: Mapping[str, Mapping[str, StateValue]], *, strict: bool = True) -> None:
        """Give every loss its state; raises `ValueError` where the names differ, unless `strict` is False."""
        if strict and state.keys() != self._by_name.keys():
            missing, unknown = sorted(self._by_name.keys() - state), sorted(state.keys() - self._by_name)
            raise ValueError(
                f"the saved state is of other losses: it lacks {missing} and has {unknown} beside; "
                "train with the same losses or load with strict=False"
            )
        for name, loss in self._by_name.items():
            if name in state:
                loss.load_state_dict(state[name])


def _check(losses: tuple[Loss, ...]) -> None:
    if not losses:
        raise ValueError("a run needs at least one loss")
    for loss in losses:
        if not isinstance(loss, Loss):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{loss!r} is not a loss: it must be an instance of a subclass of losses.Loss")
        if type(loss).compute is Loss.compute:
            raise TypeError(f"{type(loss).__name__} must define compute(minibatch, evaluation)")
    repeated = [name for name, count in Counter(loss.name for loss in losses).items() if count > 1]
    if repeated:
        raise ValueError(
            f"several losses are called {', '.join(map(repr, repeated))}: give each its own, with name=..."
        )


def _merged_fields(losses: tuple[Loss, ...]) -> tuple[FieldSpec, ...]:
    merged: dict[str, tuple[FieldSpec, str]] = {}
    for loss in losses:
        for field in loss.experience_fields():
            first, owner = merged.setdefault(field.name, (field, loss.name))
            if first != field:
                raise ValueError(
                    f"the losses {owner!r} and {loss.name!r} declare the experience field {field.name!r} "
                    f"differently: {first} and {field}"
                )
    return tuple(field for field, _ in merged.values())
