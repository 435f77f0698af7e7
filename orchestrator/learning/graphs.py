"""Minibatches that the device repeats: `learning.graphs`. A minibatch of a network that is no giant takes longer to
launch, operation by operation, than to compute; recorded once (`replays.py`), it is one launch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.config.paths import PATH
from orchestrator.learning.capturable import numbers_of, why_not_capturable
from orchestrator.learning.minibatches import Draw
from orchestrator.learning.recordable import settings_against_graphs
from orchestrator.policies.capture import capture_on
from orchestrator.policies.replays import Repeated, Replays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    from losses import LossSet, LossStatistics
    from losses.statistics import HostSums
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.learning.optimization import Optimization
    from orchestrator.policies import Policy
    from orchestrator.policies.capture import Capture
    from state.parameter_arena import ParameterArena

_MOST_ANEW = 8
"""Changes after which minibatches are recorded anew."""


class _Kind(Repeated):
    """Minibatches that are alike in all that a recording depends on, and where they are put."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = Draw(
            draw.fields.at(draw.fields.index.clone()),
            None if draw.valid is None else draw.valid.clone(),
            None if draw.weight is None else draw.weight.clone(),
        )

    def put(self, draw: Draw) -> None:
        """Bring the minibatch to the places that a recording reads."""
        for own, given in (
            (self.draw.fields.index, draw.fields.index),
            (self.draw.valid, draw.valid),
            (self.draw.weight, draw.weight),
        ):
            if own is not None and given is not None:
                own.copy_(given)

    def drawn(self) -> Draw:
        """The minibatch that was put there. Each time it is learned from, it has to be another one: what has been taken
        of it is kept with it, and what a recording takes is nothing until it is replayed."""
        return replace(self.draw, fields=self.draw.fields.again())


class _Effects:
    """Those of a minibatch."""

    def __init__(self, losses: LossSet, optimization: Optimization, statistics: LossStatistics) -> None:
        self._losses, self._optimization, self._statistics = losses, optimization, statistics

    def tensors(self) -> list[Tensor]:
        return [*self._optimization.tensors, *self._statistics.tensors]

    def numbers(self) -> list[Tensor]:
        return self._optimization.learned

    def on_host(self) -> HostSums:
        return self._statistics.on_host()

    def set_on_host(self, known: HostSums) -> None:
        self._statistics.set_on_host(known)
        self._losses.take_stop_conditions()

    def on_host_again(self, before: HostSums) -> Callable[[], None]:
        zero = (0.0, 0)
        tracked = {
            name: (total - before.get(name, zero)[0], count - before.get(name, zero)[1])
            for name, (total, count) in self._statistics.on_host().items()
        }
        stops = self._losses.take_stop_conditions()

        def again() -> None:
            self._statistics.add_on_host(tracked)
            for member, when in stops:
                member.stop_update(when)

        return again


def graphs_for(
    config: TrainerConfig,
    device: torch.device,
    policy: Policy,
    arena: ParameterArena,
    losses: LossSet,
    optimization: Optimization,
    statistics: LossStatistics,
) -> MinibatchGraphs | None:
    """Those of a learner that has all this; None where the settings want none. Raises GraphsError where they do, and
    the device has none."""
    setting = config.learning.graphs
    if setting == "auto" and any(settings_against_graphs(config)):
        return None
    capture = capture_on(device, setting, PATH.learning.graphs, PATH.device, "the learner's")
    return None if capture is None else MinibatchGraphs(capture, policy, arena, losses, optimization, statistics)


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
        self._policy = policy
        self._arena = arena
        self._losses = losses
        self._optimization = optimization
        self._effects = _Effects(losses, optimization, statistics)
        self._replays = Replays(capture, PATH.learning.graphs, "the learner", "a minibatch")
        self.warnings = self._replays.warnings
        """What the user should know, by what it is about."""
        self.batch: dict[str, Tensor] = {}
        """What minibatches are to be drawn from: the fields of the batch that `hold` was given last."""
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._conditions: list[object] = []
        self._changes = 0
        self.replayed = 0
        """Minibatches of this epoch that were."""
        reason = why_not_capturable(policy, losses)
        self.apply = not reason
        """Whether minibatches are to be of the sizes that can be recorded, and to be given to `run`."""
        if reason:
            self._replays.give_up(reason)

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
        kind.put(draw)

        def eagerly() -> None:
            with self._optimization.at_fixed_place(place):
                learn(kind.drawn())

        if self._replays.works and self._as_it_was():
            self._look_for_changes()
            self.replayed += self._replays.run(kind, self._effects, eagerly)
        else:
            eagerly()
        self._optimization.log_from(place, stepped=steps)

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
            kind.forget()
        if self._changes > _MOST_ANEW:
            self._replays.give_up(
                "coefficients of losses, or what is frozen, change again and again, each of which takes a new recording"
            )


def _kinds_of(batch: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (one.shape, one.dtype) for name, one in batch.items()}
