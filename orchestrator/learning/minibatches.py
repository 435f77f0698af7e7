"""What the minibatches of one epoch are made of: which steps or segments, in which order, with which weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from losses import Rows, importance_weights, segment_probabilities


@dataclass(frozen=True, slots=True)
class Draw:
    """One minibatch's rows: `fields` are `[n, ...]` (steps) or `[n, horizon, ...]` (segments)."""

    fields: Rows
    valid: Tensor | None
    weight: Tensor | None


class StepDraws:
    """Each pass visits every valid step once, in random order, in `count` nearly equal minibatches."""

    def __init__(self, batch: Mapping[str, Tensor], valid: Tensor, count: int, generator: torch.Generator) -> None:
        self._flat = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
        flat_valid = valid.flatten()
        self._steps = None if bool(flat_valid.all()) else flat_valid.nonzero().squeeze(1)
        self._total = len(flat_valid) if self._steps is None else len(self._steps)
        self._count = count
        self._generator = generator

    def one_pass(self) -> Iterator[Draw]:
        device = self._generator.device
        order = torch.randperm(self._total, generator=self._generator, device=device)
        if self._steps is not None:
            order = self._steps[order]
        for index in order.tensor_split(self._count):
            if len(index):
                yield Draw(Rows(self._flat, index), None, None)


class SegmentDraws:
    """Each pass makes `count` minibatches of whole segments.

    Every segment is visited once, unless `priority_exponent` is positive: then segments are drawn, with replacement,
    with probability proportional to their mean absolute advantage to that power, and weighted to correct for it.
    """

    def __init__(
        self,
        batch: Mapping[str, Tensor],
        valid: Tensor,
        count: int,
        generator: torch.Generator,
        *,
        priority_exponent: float = 0.0,
        correction: float = 1.0,
    ) -> None:
        self._batch = batch
        self._valid = None if bool(valid.all()) else valid
        self._segments = len(valid)
        self._count = count
        self._generator = generator
        self._correction = correction
        self._probabilities: Tensor | None = None
        if priority_exponent > 0:
            self._probabilities = segment_probabilities(batch["advantage"], self._valid, priority_exponent)

    def one_pass(self) -> Iterator[Draw]:
        device = self._generator.device
        if self._probabilities is None:
            order = torch.randperm(self._segments, generator=self._generator, device=device)
        else:
            order = torch.multinomial(self._probabilities, self._segments, replacement=True, generator=self._generator)
        for index in order.tensor_split(self._count):
            if len(index):
                valid = None if self._valid is None else self._valid[index]
                weight = (
                    None
                    if self._probabilities is None
                    else importance_weights(self._probabilities, index, self._correction)
                )
                yield Draw(Rows(self._batch, index), valid, weight)
