"""The gradient of a minibatch: of the whole, or summed over the shards, here and elsewhere, that have parts of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from losses import Minibatch
from orchestrator.learning.agreement import check_unchanged
from orchestrator.learning.shards import ShardStatistics
from orchestrator.learning.summation import tree
from state.user_code import raise_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from losses import LossSet, LossStatistics
    from orchestrator.learning.exchange import Exchange
    from orchestrator.learning.gradients import GradientCheck
    from orchestrator.learning.minibatch_evaluation import MinibatchEvaluation
    from orchestrator.learning.minibatches import Draw
    from orchestrator.learning.optimization import Optimization
    from state.parameter_arena import ParameterArena


@dataclass(frozen=True, slots=True)
class MinibatchGradient:
    """Made once by a learner from what it has; `interrupted` says whether the epoch is to end now."""

    evaluate: MinibatchEvaluation
    arena: ParameterArena
    losses: LossSet
    checks: GradientCheck
    optimization: Optimization
    statistics: LossStatistics
    exchange: Exchange
    network: str
    interrupted: Callable[[], bool]

    def add(
        self, draws: Sequence[Draw | None], epoch: int, update_epoch: int, mb_idx: int, *, share: float, first: bool
    ) -> tuple[bool, bool]:
        """Add `share` of the gradient to the step in preparation. `draws` are what each shard here has of the
        minibatch; `first` says that it is the epoch's first.

        With several shards, the minibatch's loss is the mean of theirs. Returns whether the epoch's updates are to end
        with this minibatch, and whether the epoch is to end now: in each cell where it is so in one.
        """

        def computed(draw: Draw) -> tuple[Tensor, Tensor]:
            minibatch = Minibatch(
                fields=draw.fields,
                valid=draw.valid,
                weight=draw.weight,
                epoch=epoch,
                update_epoch=update_epoch,
                mb_idx=mb_idx,
                parts=self.evaluate.parts(draw),
            )
            try:
                evaluation = self.evaluate(draw)
            except BaseException as error:
                raise_failure(error, f"the network {self.network!r} in epoch {epoch + 1}")
            self.checks.outputs(evaluation)
            total, components = self.losses.compute(minibatch, evaluation)
            if first and 0 not in draw.counts:
                self.checks.total(evaluation, total, self.losses.without_gradient)
            return total, components

        statistics = self.statistics
        if not isinstance(statistics, ShardStatistics):
            (draw,) = draws
            assert draw is not None
            self.optimization.backward(*computed(draw), share)
            return False, False

        def of_shard(index: int) -> list[Tensor]:
            draw = draws[index]
            components = torch.zeros(len(self.losses.active(epoch)), device=self.optimization.device)
            if draw is not None:
                statistics.select(index)
                total, components = computed(draw)
                if total.requires_grad:
                    total.backward()
            return [*self.optimization.take_gradients(alone=len(draws) == 1), components.float()]

        before = self.arena.checksums() if first else None
        sums = tree(0, len(draws), of_shard, _added)
        if before is not None:
            check_unchanged(self.arena, before, self.network)
        statistics.select(None)
        flags = torch.tensor([float(self.losses.stop_requested), float(self.interrupted())])
        self.exchange.sum([*sums, flags])
        shards = len(draws) * self.exchange.cells
        self.optimization.add_gradients(sums[:-1], sums[-1] / shards, share / shards)
        stop, interrupted = (flags > 0).tolist()
        return stop, interrupted


def _added(one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    for mine, its in zip(one, other, strict=True):
        mine += its
    return one
