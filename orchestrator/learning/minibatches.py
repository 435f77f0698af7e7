"""What the minibatches of one epoch are made of: which steps or segments, in which order, with which weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from losses import Rows, importance_weights, segment_probabilities

if TYPE_CHECKING:
    from orchestrator.config.settings import LearningConfig


@dataclass(frozen=True, slots=True)
class Draw:
    """One minibatch's rows: `fields` are `[n, ...]` (steps) or `[n, horizon, ...]` (segments)."""

    fields: Rows
    valid: Tensor | None
    """As of `Minibatch`, as is `weight`."""
    weight: Tensor | None
    counts: tuple[int, ...] = ()
    """How many rows of each policy follow one another, where types of agents have policies of their own."""


class StepDraws:
    """Each pass visits every valid step once, in random order, in `count` nearly equal minibatches (None: empty).

    Where types of agents have policies of their own, `segments` are those of each: every minibatch then has a nearly
    equal share of the steps of each, one policy after another.

    With `fixed_size`, minibatches have as many rows as if all steps were valid: the rest are steps that they have
    already, and that are not `valid` here.
    """

    def __init__(
        self,
        batch: Mapping[str, Tensor],
        valid: Tensor,
        count: int,
        generator: torch.Generator,
        segments: Sequence[Tensor] = (),
        *,
        fixed_size: bool = False,
    ) -> None:
        self._flat = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
        flat_valid = valid.flatten()
        all_valid = bool(flat_valid.all())
        self._steps: list[Tensor | None] = [None if all_valid else flat_valid.nonzero().squeeze(1)]
        if segments:
            times = torch.arange(valid.shape[1], device=valid.device)
            own = [(one[:, None] * len(times) + times).flatten() for one in segments]
            self._steps = [one if all_valid else one[flat_valid[one]] for one in own]
        self._by_type = bool(segments)
        self._totals = [len(flat_valid) if one is None else len(one) for one in self._steps]
        self._count = count
        self._generator = generator
        self._rows = -(-len(flat_valid) // count) if fixed_size and not all_valid else None

    def one_pass(self) -> Iterator[Draw | None]:
        device = self._generator.device
        orders: list[Tensor] = []
        for total, steps in zip(self._totals, self._steps, strict=True):
            order = torch.randperm(total, generator=self._generator, device=device)
            orders.append(order if steps is None else steps[order])
        for index, counts in _shares(orders, self._count, self._by_type):
            valid = None
            if self._rows is not None and len(index):
                valid = torch.arange(self._rows, device=device) < len(index)
                index = torch.cat([index, index[:1].expand(self._rows - len(index))])
            yield Draw(Rows(self._flat, index), valid, None, counts) if len(index) else None


class SegmentDraws:
    """Each pass makes `count` minibatches of whole segments, of which `segments` are those of each policy, as of
    `StepDraws`.

    Every segment is visited once, unless `priority_exponent` is positive: then segments are drawn, with replacement,
    with probability proportional to their mean absolute advantage to that power, among those of the same policy, and
    weighted to correct for it.
    """

    def __init__(
        self,
        batch: Mapping[str, Tensor],
        valid: Tensor,
        count: int,
        generator: torch.Generator,
        segments: Sequence[Tensor] = (),
        *,
        priority_exponent: float = 0.0,
        correction: float = 1.0,
    ) -> None:
        self._batch = batch
        self._valid = None if bool(valid.all()) else valid
        self._by_type = bool(segments)
        self._segments: list[Tensor | None] = list(segments) or [None]
        self._totals = [len(valid) if one is None else len(one) for one in self._segments]
        self._count = count
        self._generator = generator
        self._correction = correction
        self._probabilities: list[Tensor] = []
        if priority_exponent > 0:
            for own in self._segments:
                some = slice(None) if own is None else own
                size, counts = batch["advantage"][some], None if self._valid is None else self._valid[some]
                # Of a policy, a part of a batch may have no segments.
                likely = segment_probabilities(size, counts, priority_exponent) if len(size) else size.new_zeros(0)
                self._probabilities.append(likely)

    def one_pass(self) -> Iterator[Draw | None]:
        device = self._generator.device
        orders: list[Tensor] = []
        weights: list[Tensor] = []
        for place, (total, own) in enumerate(zip(self._totals, self._segments, strict=True)):
            if not self._probabilities or not total:
                order = torch.randperm(total, generator=self._generator, device=device)
            else:
                order = torch.multinomial(
                    self._probabilities[place], total, replacement=True, generator=self._generator
                )
            if self._probabilities:
                weights.append(importance_weights(self._probabilities[place], order, self._correction))
            orders.append(order if own is None else own[order])
        weighted = _shares(weights, self._count, self._by_type) if weights else None
        for index, counts in _shares(orders, self._count, self._by_type):
            valid = None if self._valid is None else self._valid[index]
            weight = None if weighted is None else next(weighted)[0]
            yield Draw(Rows(self._batch, index), valid, weight, counts) if len(index) else None


def _shares(of_policies: Sequence[Tensor], count: int, by_type: bool) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """What falls to each of `count` minibatches, and how much of each policy where types of agents have their own."""
    for shares in zip(*(one.tensor_split(count) for one in of_policies), strict=True):
        share = shares[0] if len(shares) == 1 else torch.cat(shares)
        yield share, tuple(map(len, shares)) if by_type else ()


def draws_of(
    batch: Mapping[str, Tensor],
    config: LearningConfig,
    generator: torch.Generator,
    segments: Sequence[Tensor],
    per_segment: Collection[str] | None,
    fixed_size: bool = False,
) -> StepDraws | SegmentDraws:
    """Of whole segments, or where `per_segment` names the fields that there is one of for each segment, of steps."""
    common: Any = batch["valid"], config.minibatches, generator, segments
    if per_segment is None:
        exponent, correction = config.priority_exponent, config.priority_correction
        return SegmentDraws(batch, *common, priority_exponent=exponent, correction=correction)
    steps = {name: batch[name] for name in batch if name not in per_segment}
    return StepDraws(steps, *common, fixed_size=fixed_size)


def drawn_together(shards: Sequence[StepDraws | SegmentDraws], *, of_run: int) -> Iterator[tuple[Draw | None, ...]]:
    """One pass over the `shards` here, of so many `of_run`: each minibatch has a part of each. Where there is only one,
    empty minibatches are left out."""
    together = zip(*(shard.one_pass() for shard in shards), strict=True)
    return together if of_run > 1 else (draws for draws in together if draws[0] is not None)
