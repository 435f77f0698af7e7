"""Several losses as the one that a learner minimizes, a weighted sum of those that are active in the epoch; and the
callbacks that take part with them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch

from losses.callback import CALLBACKS, LearnerCallback, StateValue
from losses.loss import Loss
from state.error import OrchestratorError
from state.misspelt import misspelt, wrong_parameters
from state.plain_data import encode
from state.user_code import described, is_signal, raise_failure, user_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from losses.callback import LossContext
    from losses.minibatch import Minibatch, PolicyEvaluation
    from state.experience import FieldSpec
    from state.trainer_state import TrainerState


class LossSet:
    """The losses of a run and its other callbacks in the learner, in order.

    Raises `ValueError` where there is no loss, where two of all share a name, or where two declare one experience
    field differently; `TypeError` for what is neither a loss nor a callback, or a loss that does not define `compute`.
    """

    def __init__(self, members: Iterable[LearnerCallback]) -> None:
        self.members = tuple(members)
        _check(self.members)
        self.losses = tuple(member for member in self.members if isinstance(member, Loss))
        self._by_name = {member.name: member for member in self.members}
        self._fields = _merged_fields(self.members)
        # Found once: the hot loop must not pay for callbacks that nobody has overridden.
        self._callbacks = {
            callback: tuple(
                _named(member, callback)
                for member in self.members
                if getattr(type(member), callback) is not getattr(LearnerCallback, callback)
            )
            for callback in CALLBACKS
        }
        self.observers = tuple(member for member in self.members if type(member).observe is not LearnerCallback.observe)
        """Those of which `observe` is called."""
        self._active_epoch: int | None = None
        self._active: tuple[Loss, ...] = ()
        self.without_gradient: set[str] = set()
        """The names of the losses that have been without a gradient in this epoch."""

    def __repr__(self) -> str:
        return f"LossSet({', '.join(self._by_name)})"

    # What they ask for.

    @property
    def needs_segments(self) -> bool:
        """Whether any of them needs minibatches of whole segments."""
        return any(loss.needs_segments for loss in self.losses)

    def experience_fields(self) -> tuple[FieldSpec, ...]:
        """The fields that all together ask collectors to record, each once."""
        return self._fields

    # The hot loop.

    def attach(self, context: LossContext) -> None:
        """Lend the learner's things to each."""
        for member in self.members:
            with user_code(f"attach of {member.name!r}"):
                member.attach(context)

    def overriding(self, callback: str) -> tuple[Callable[[TrainerState], None], ...]:
        """The callbacks of that name, one of `CALLBACKS`, that are overridden, in order, ready to call."""
        return self._callbacks[callback]

    def active(self, epoch: int) -> tuple[Loss, ...]:
        """The losses that are computed in `epoch`; with none, there is nothing to train on."""
        if epoch != self._active_epoch:
            self._active = tuple(loss for loss in self.losses if loss.active_at(epoch))
            self._active_epoch = epoch
        return self._active

    def begin_epoch(self) -> None:
        """Forget the requests to stop, and what was without gradient; called before the updates of an epoch."""
        self.without_gradient.clear()
        for member in self.members:
            member.take_stop_conditions()
            member.stop_requested = False

    def abandon_epoch(self) -> None:
        """Tell each that the epoch has ended in an error."""
        for member in self.members:
            with user_code(f"abandon_epoch of {member.name!r}"):
                member.abandon_epoch()

    @property
    def stop_requested(self) -> bool:
        """Whether one has asked to end this epoch's updates. Waits for the device where that depends on a tensor."""
        for member, when in self.take_stop_conditions():
            member.stop_requested = member.stop_requested or bool(when)
        return any(member.stop_requested for member in self.members)

    def take_stop_conditions(self) -> list[tuple[LearnerCallback, Tensor]]:
        """The tensors that decide about an end after the current minibatch, and whose they are."""
        return [(member, when) for member in self.members for when in member.take_stop_conditions()]

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> tuple[Tensor, Tensor]:
        """The weighted sum over the losses active in the minibatch's epoch, and each of them alone; what observes is
        called after them.

        Returns a scalar with gradients, and `[active]` without gradients or weights, in the order of
        `active(epoch)`: 0 for that of a policy that has no rows in the minibatch.
        Raises `ValueError` where a loss is no scalar, or changes the `evaluation` that the next one
        is given, and `RuntimeError` where none is active.
        """
        active = self.active(minibatch.epoch)
        alone = len(active) == 1 and not self.observers
        last = active[-1] if active and not self.observers else None
        evaluated = (evaluation.log_prob, evaluation.entropy, evaluation.value, evaluation.action_parameters)
        versions = [tensor._version for tensor in evaluated]
        total: Tensor | None = None
        components: list[Tensor] = []
        of_policies: dict[str, PolicyEvaluation] = {}
        for loss in active:
            # None sees what another does to its minibatch.
            try:
                weight = loss.weight
                if loss.of_policy is None:
                    value = loss.compute(minibatch if alone else minibatch.again(), evaluation)
                else:
                    rows = _rows_of(loss, minibatch)
                    if rows.start == rows.stop:
                        components.append(evaluation.value.new_zeros(()))
                        continue
                    if loss.of_policy not in of_policies:
                        of_policies[loss.of_policy] = evaluation.part(rows)
                    value = loss.compute(minibatch.part(rows), of_policies[loss.of_policy])
                    weight *= (rows.stop - rows.start) / len(evaluation.value)
            except BaseException as error:
                raise_failure(error, f"the loss {loss.name!r} in {_place(minibatch)}")
            if loss is not last and [tensor._version for tensor in evaluated] != versions:
                raise ValueError(
                    f"the loss {loss.name!r} changed a tensor of the policy's evaluation in place, which the losses"
                    " after it are given too: change a clone() of it"
                )
            _check_value(loss, value)
            if not value.requires_grad:
                self.without_gradient.add(loss.name)
            components.append(value.detach())
            weighted = value if weight == 1.0 else value * weight
            total = weighted if total is None else total + weighted
        if total is None and active:
            total = 0.0 * evaluation.value.sum()
        if total is None:
            raise RuntimeError(f"no loss is active in epoch {minibatch.epoch + 1}: skip the epoch's updates")
        with torch.no_grad():
            for member in self.observers:
                try:
                    member.observe(minibatch.again(), evaluation)
                except BaseException as error:
                    raise_failure(error, f"observe of {member.name!r} in {_place(minibatch)}")
        return total, torch.stack(components)

    # What a checkpoint keeps of them.

    def state_dict(self) -> dict[str, dict[str, StateValue]]:
        """Each one's state by its name. Raises `LossStateError` where a checkpoint can't keep one, or it fails."""
        return {member.name: _state_of(member) for member in self.members}

    def load_state_dict(self, state: Mapping[str, Mapping[str, StateValue]]) -> None:
        """Give each its state; raises `ValueError` where the names differ."""
        if state.keys() != self._by_name.keys():
            missing, unknown = sorted(self._by_name.keys() - state), sorted(state.keys() - self._by_name)
            raise ValueError(
                f"the saved state is of other losses: it lacks {missing} and has {unknown} in addition; "
                "train with the same losses"
            )
        for name, member in self._by_name.items():
            with user_code(f"load_state_dict of {name!r}"):
                member.load_state_dict(state[name])


def _named(member: LearnerCallback, callback: str) -> Callable[[TrainerState], None]:
    """The member's callback, whose errors name it."""
    function: Callable[[TrainerState], None] = getattr(member, callback)

    def call(state: TrainerState) -> None:
        try:
            function(state)
        except BaseException as error:
            raise_failure(error, f"{callback} of {member.name!r} in epoch {state.epoch + 1}")

    return call


def _rows_of(loss: Loss, minibatch: Minibatch) -> slice:
    try:
        return minibatch.parts[loss.of_policy or ""]
    except KeyError:
        known = ", ".join(minibatch.parts) or "none: all agents have one policy"
        raise ValueError(f"it is of the policy {loss.of_policy!r}; expected one of {known}") from None


def _place(minibatch: Minibatch) -> str:
    return f"epoch {minibatch.epoch + 1}, update epoch {minibatch.update_epoch + 1}, minibatch {minibatch.mb_idx + 1}"


class LossStateError(OrchestratorError, ValueError):
    """What a loss's `state_dict` returns is nothing that a checkpoint can keep, or it failed."""


def _state_of(member: LearnerCallback) -> dict[str, StateValue]:
    what = f"{type(member).__name__}.state_dict()"
    cannot = f"the state of the loss {member.name!r} can't be saved"
    try:
        state = member.state_dict()
    except BaseException as error:
        if is_signal(error):
            raise
        raise LossStateError(f"{cannot}: {what} raised {described(error)}") from error
    try:
        if not isinstance(cast(object, state), Mapping):
            raise TypeError(f"{what} returned {state!r} of type {type(state).__name__}, which is no dict")
        encode(state, {}, what)
    except TypeError as error:
        cure = "return a dict of tensors, numpy arrays, numbers, text, None, and lists, tuples and dicts of these"
        raise LossStateError(f"{cannot}: {error}; {cure}") from error
    return state


def _check_value(loss: Loss, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        returned = f"{value!r} of type {type(value).__name__}"
    elif not value.is_floating_point():
        returned = f"a tensor of {value.dtype}"
    elif value.dim() != 0:
        returned = f"a tensor of shape {tuple(value.shape)}"
    else:
        return
    raise ValueError(
        f"the loss {loss.name!r} returned {returned}, but must return a scalar, such as minibatch.mean(per_step)"
    )


def _check(members: tuple[LearnerCallback, ...]) -> None:
    for member in members:
        if not isinstance(member, LearnerCallback):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"{member!r} is not a loss: it must be an instance of a subclass of losses.Loss (or, where it"
                " minimizes nothing, of losses.LearnerCallback)"
            )
        if isinstance(member, Loss) and type(member).compute is Loss.compute:
            raise TypeError(f"{type(member).__name__} must define compute(minibatch, evaluation)")
        problems = [*_mistakes(member)]
        if problems:
            raise TypeError(f"the loss {member.name!r}: {'; '.join(problems)}")
    if not any(isinstance(member, Loss) for member in members):
        raise ValueError("a run needs at least one loss")
    repeated = [name for name, count in Counter(member.name for member in members).items() if count > 1]
    if repeated:
        raise ValueError(
            f"several losses are called {', '.join(map(repr, repeated))}: give each its own, with name=..."
        )


def _mistakes(member: LearnerCallback) -> Iterator[str]:
    """What would do nothing, or fail only in the training."""
    base = Loss if isinstance(member, Loss) else LearnerCallback
    for name in dir(type(member)):
        if name.startswith("on_") and name not in CALLBACKS:
            if name in ("on_training_end", "on_failure", "on_checkpoint_committed"):
                yield f"{name} is a callback of hooks; losses have {', '.join(CALLBACKS)}"
            elif similar := difflib.get_close_matches(name, CALLBACKS, n=1, cutoff=0.8):
                yield f"there is no callback {name!r}; did you mean {similar[0]!r}?"
    for method, given in (
        *((callback, ("state",)) for callback in CALLBACKS),
        ("observe", ("minibatch", "evaluation")),
        *([("compute", ("minibatch", "evaluation"))] if isinstance(member, Loss) else []),
    ):
        problem = wrong_parameters(getattr(member, method), *given)
        if problem:
            yield f"{method} {problem}"
    yield from misspelt(member, base, (*vars(LearnerCallback), *vars(Loss)) if base is Loss else vars(LearnerCallback))


def _merged_fields(members: tuple[LearnerCallback, ...]) -> tuple[FieldSpec, ...]:
    merged: dict[str, tuple[FieldSpec, str]] = {}
    for member in members:
        with user_code(f"experience_fields of {member.name!r}"):
            fields = tuple(member.experience_fields())
        for field in fields:
            first, owner = merged.setdefault(field.name, (field, member.name))
            if first != field:
                raise ValueError(
                    f"the losses {owner!r} and {member.name!r} declare the experience field {field.name!r} "
                    f"differently: {first} and {field}"
                )
    return tuple(field for field, _ in merged.values())
