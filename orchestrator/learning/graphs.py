"""Minibatches that the device repeats: `learning.graphs`. A minibatch of a network that is no giant takes longer to
launch, operation by operation, than to compute; recorded once, it is one launch.

The first minibatches of each kind are learned operation by operation, the next one is recorded, replayed, and learned
again operation by operation from where it began: only where both gave the same bits are the following ones replayed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from orchestrator.config.paths import PATH
from orchestrator.learning.capturable import numbers_of, why_not_capturable
from orchestrator.learning.capture import capture_on
from orchestrator.learning.minibatches import Draw
from state.user_code import described, is_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from losses import LearnerCallback, LossSet, LossStatistics
    from losses.statistics import HostSums
    from orchestrator.learning.capture import Capture
    from orchestrator.learning.optimization import Optimization
    from orchestrator.policies import Policy
    from state.parameter_arena import ParameterArena

WARM_UP = 3
"""Minibatches of each kind that are learned before one is recorded; as many as in torch's documentation."""
_MOST_ANEW = 8
"""Changes after which minibatches are recorded anew."""
_NEAR = 10.0
"""How many times as far from an eager minibatch as a second one a replayed one may be, where the device does not give
the same bits twice anyway."""


class _Kind:
    """Minibatches that are alike in all that a recording depends on, and where they are put."""

    def __init__(self, draw: Draw) -> None:
        self.draw = Draw(
            draw.fields.at(draw.fields.index.clone()),
            None if draw.valid is None else draw.valid.clone(),
            None if draw.weight is None else draw.weight.clone(),
        )
        self.warm_ups = 0
        self.replay: Callable[[], None] | None = None
        self.tracked: HostSums = {}
        self.stops: list[tuple[LearnerCallback, Tensor]] = []

    def put(self, draw: Draw) -> Draw:
        """The minibatch, in the places that a recording reads."""
        for own, given in (
            (self.draw.fields.index, draw.fields.index),
            (self.draw.valid, draw.valid),
            (self.draw.weight, draw.weight),
        ):
            if own is not None and given is not None:
                own.copy_(given)
        # Others than before, since what has been taken of a minibatch is kept with it.
        return replace(self.draw, fields=self.draw.fields.at(self.draw.fields.index))


def graphs_for(
    device: torch.device,
    policy: Policy,
    arena: ParameterArena,
    losses: LossSet,
    optimization: Optimization,
    statistics: LossStatistics,
) -> MinibatchGraphs:
    """Those of a learner that has all this. Raises GraphsError where the device has none."""
    return MinibatchGraphs(capture_on(device), policy, arena, losses, optimization, statistics)


class MinibatchGraphs:
    """Made once by a learner from what it has, with how its device records (`capture`).

    What can't be recorded is learned operation by operation, as without graphs, and `warnings` say why.
    """

    def __init__(
        self,
        capture: Capture,
        policy: Policy,
        arena: ParameterArena,
        losses: LossSet,
        optimization: Optimization,
        statistics: LossStatistics,
    ) -> None:
        self._capture = capture
        self._policy = policy
        self._arena = arena
        self._losses = losses
        self._optimization = optimization
        self._statistics = statistics
        self.batch: dict[str, Tensor] = {}
        """What minibatches are to be drawn from: the fields of the batch that `hold` was given last."""
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._conditions: list[object] = []
        self._changes = 0
        self.replayed = 0
        """Minibatches of this epoch that were."""
        self.warnings: dict[str, str] = {}
        """What the user should know, by what it is about."""
        reason = why_not_capturable(policy, losses)
        self.apply = not reason
        """Whether minibatches are to be of the sizes that can be recorded, and to be given to `run`."""
        self._works = self.apply
        if reason:
            self._give_up(reason)

    def hold(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take an epoch's batch, with fields `[segments, horizon, ...]`, to where that of every epoch is. What is
        returned has the fields there; what was the same tensor by two names is so again."""
        self.replayed = 0
        if _kinds_of(batch) != _kinds_of(self.batch):
            self._kinds.clear()
            # Not as they were laid out, so that the steps of them are views.
            self.batch = {name: one.new_empty(one.shape) for name, one in batch.items()}
        for name, one in batch.items():
            self.batch[name].copy_(one)
        places = {id(one): self.batch[name] for name, one in batch.items()}
        return {name: places[id(one)] for name, one in batch.items()}

    def run(self, draw: Draw, epoch: int, place: int, learn: Callable[[Draw], object], *, steps: bool) -> None:
        """Learn from a minibatch, the one at `place` since the last step: as `learn` does, which with it `steps`."""
        names = tuple(loss.name for loss in self._losses.active(epoch))
        shape = (len(draw.fields.index), draw.valid is None, draw.weight is None)
        key = (shape, draw.counts, names, place, steps)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(draw)
        own = kind.put(draw)

        def eagerly() -> None:
            with self._optimization.at_fixed_place(place):
                learn(own)

        if self._works and self._as_it_was():
            self._look_for_changes()
            self._run(kind, eagerly)
        else:
            eagerly()
        self._optimization.log_from(place, stepped=steps)

    def _run(self, kind: _Kind, eagerly: Callable[[], None]) -> None:
        if kind.replay is not None:
            kind.replay()
            self._statistics.add_on_host(kind.tracked)
            for member, when in kind.stops:
                member.stop_update(when)
            self.replayed += 1
        elif not self._works:
            eagerly()
        elif kind.warm_ups < WARM_UP:
            kind.warm_ups += 1
            with self._capture.warming_up():
                eagerly()
        elif self._record(kind, eagerly):
            self._check(kind, eagerly)
        else:
            eagerly()

    def _record(self, kind: _Kind, eagerly: Callable[[], None]) -> bool:
        """Record a minibatch; whether that was possible. Nothing is learned by it."""
        before = self._statistics.on_host()
        try:
            kind.replay = self._capture.record(eagerly)
        except BaseException as error:
            if is_signal(error):
                raise
            where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            self._give_up(f"a minibatch can't be recorded: {described(error)}{where}")
            self._losses.take_stop_conditions()
        else:
            zero = (0.0, 0)
            kind.tracked = {
                name: (total - before.get(name, zero)[0], count - before.get(name, zero)[1])
                for name, (total, count) in self._statistics.on_host().items()
            }
            kind.stops = self._losses.take_stop_conditions()
        self._statistics.set_on_host(before)
        return kind.replay is not None

    def _check(self, kind: _Kind, eagerly: Callable[[], None]) -> None:
        """Learn from the minibatch eagerly, and see whether replaying it does the same."""
        assert kind.replay is not None
        before, on_host = self._state(), self._statistics.on_host()
        generator = self._capture.generator_state()

        def from_before(learn: Callable[[], None]) -> tuple[list[Tensor], list[Tensor]]:
            for tensor, content in zip(self._tensors(), before, strict=True):
                tensor.copy_(content)
            self._statistics.set_on_host(on_host)
            self._losses.take_stop_conditions()
            self._capture.set_generator_state(generator)
            learn()
            return self._state(), [vector.clone() for vector in self._optimization.learned]

        replayed, eager = from_before(kind.replay), from_before(eagerly)
        if _same_bits(replayed[0], eager[0]):
            return
        again = from_before(eagerly)
        # Not every device gives the same bits twice: cuDNN's convolutions need not.
        usual = _distance(again[1], eager[1])
        if not _same_bits(again[0], eager[0]) and _distance(replayed[1], eager[1]) <= _NEAR * usual:
            return
        kind.replay = None
        far = _distance(replayed[1], again[1])
        self._give_up(f"a replayed minibatch differs from one that is not, by {far:.3g} in weights and gradient")

    def _tensors(self) -> list[Tensor]:
        return [*self._optimization.tensors, *self._statistics.tensors]

    def _state(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self._tensors()]

    def _as_it_was(self) -> bool:
        """Whether the policy's tensors are in their places, and nothing is to be called when gradients come about."""
        return self._arena.unchanged() and not any(
            parameter._backward_hooks or parameter._post_accumulate_grad_hooks  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportAttributeAccessIssue]
            for parameter in self._policy.parameters()
        )

    def _look_for_changes(self) -> None:
        """Forget what was recorded under other conditions."""
        conditions = [self._optimization.changes, *numbers_of(self._losses.losses)]
        if conditions == self._conditions:
            return
        self._changes += bool(self._conditions)
        self._conditions = conditions
        for kind in self._kinds.values():
            kind.replay, kind.warm_ups = None, 0
        if self._changes > _MOST_ANEW:
            self._give_up(
                "coefficients of losses, or what is frozen, change again and again, each of which takes a new recording"
            )

    def _give_up(self, reason: str) -> None:
        self._works = False
        for kind in self._kinds.values():
            kind.replay = None
        self.warnings["graphs"] = f"{PATH.learning.graphs}: the learner goes on without graphs, because {reason}"


def _kinds_of(batch: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (one.shape, one.dtype) for name, one in batch.items()}


def _same_bits(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(
        torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
        for one, other in zip(some, others, strict=True)
    )


def _distance(some: list[Tensor], others: list[Tensor]) -> float:
    return float(sum((one - other).double().square().sum() for one, other in zip(some, others, strict=True))) ** 0.5
