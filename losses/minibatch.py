"""What a loss is computed from: a minibatch of experience, and the live policy's evaluation of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from state.frozen_mapping import FrozenMapping

if TYPE_CHECKING:
    from torch import Tensor

# Keeps the division finite where all advantages of a minibatch are equal.
_STANDARD_DEVIATION_FLOOR = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class PolicyEvaluation:
    """The live policy on a minibatch, with gradients; the leading dimensions are the minibatch's.

    `log_prob` and `entropy` (of the recorded action and of the whole action distribution, in nats) and `value`
    are `[...]`; `action_parameters` is `[..., parameters]`, what the action distribution is made from.
    """

    log_prob: Tensor
    entropy: Tensor
    value: Tensor
    action_parameters: Tensor

    def part(self, rows: slice) -> PolicyEvaluation:
        """Only these rows of the minibatch."""
        return PolicyEvaluation(
            log_prob=self.log_prob[rows],
            entropy=self.entropy[rows],
            value=self.value[rows],
            action_parameters=self.action_parameters[rows],
        )


class Rows(Mapping[str, "Tensor"]):
    """The rows `index` of every tensor of `source`, taken when first asked for: a loss pays for what it reads."""

    def __init__(self, source: Mapping[str, Tensor], index: Tensor) -> None:
        self._source = source
        self._index = index
        self._taken: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        taken = self._taken.get(name)
        if taken is None:
            taken = self._taken[name] = self._source[name].index_select(0, self._index)
        return taken

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def index(self) -> Tensor:
        """Which rows of the source they are."""
        return self._index

    def at(self, index: Tensor) -> Rows:
        """Other rows of the same source."""
        return Rows(self._source, index)

    def again(self) -> Rows:
        """The same rows in separate memory."""
        return Rows(self._source, self._index)

    def part(self, rows: slice) -> Rows:
        """Some of the rows, in separate memory."""
        return Rows(self._source, self._index[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Minibatch:
    """Recorded experience that one optimizer step learns from.

    The leading dimensions of everything are `[n]` (single steps, in any order) or `[n, horizon]` (whole
    segments). `fields` has the experience fields, `advantage`, `return`, and the fields that losses declare.
    `valid` is False at steps that are no transition; `None` means that all are valid. What invalid steps hold
    counts for nothing, but must be finite where gradients pass it. `weight` corrects for prioritized sampling
    and broadcasts against the leading dimensions; `None` means 1 everywhere. Where types of agents have policies of
    their own, `parts` says by the name of each which rows are its agents'.
    """

    fields: Mapping[str, Tensor]
    valid: Tensor | None = None
    weight: Tensor | None = None
    epoch: int = 0
    update_epoch: int = 0
    mb_idx: int = 0
    parts: Mapping[str, slice] = FrozenMapping({})

    def __getitem__(self, name: str) -> Tensor:
        """The field called `name`; raises `KeyError` that lists the fields there are."""
        try:
            return self.fields[name]
        except KeyError:
            raise KeyError(
                f"the minibatch has no field {name!r}, only {sorted(self.fields)}; "
                "a loss gets more by naming them in experience_fields()"
            ) from None

    def __contains__(self, name: object) -> bool:
        """Whether there is a field of that name."""
        return name in self.fields

    def again(self) -> Minibatch:
        """The same in separate memory, for a reader that may change it."""
        fields = self.fields
        return Minibatch(
            fields=fields.again() if isinstance(fields, Rows) else {name: fields[name].clone() for name in fields},
            valid=None if self.valid is None else self.valid.clone(),
            weight=None if self.weight is None else self.weight.clone(),
            epoch=self.epoch,
            update_epoch=self.update_epoch,
            mb_idx=self.mb_idx,
            parts=self.parts,
        )

    def part(self, rows: slice) -> Minibatch:
        """Only these rows, in separate memory."""
        fields = self.fields
        return replace(
            self,
            fields=fields.part(rows)
            if isinstance(fields, Rows)
            else {name: fields[name][rows].clone() for name in fields},
            valid=None if self.valid is None else self.valid[rows].clone(),
            weight=None if self.weight is None else self.weight[rows].clone(),
            parts=FrozenMapping({}),
        )

    def mean(self, per_step: Tensor) -> Tensor:
        """Mean over the valid steps of `per_step` times the weight: a scalar, 0 where no step is valid."""
        if self.weight is not None:
            per_step = per_step * self.weight
        if self.valid is None:
            # On small minibatches a dot product takes a quarter of the time of `mean`, with its gradient a half.
            return torch.dot(per_step.flatten(), _averaging(per_step.numel(), per_step.dtype, per_step.device))
        # A product with the mask would let the NaN of an invalid step through.
        return torch.where(self.valid, per_step, 0.0).sum() / self.valid.sum().clamp_(min=1)

    def standardized(self, per_step: Tensor) -> Tensor:
        """`per_step` shifted and scaled to mean 0 and standard deviation 1 over the valid steps, without
        weights. The standard deviation is the population's, so that a single step becomes 0 and not NaN."""
        if self.valid is None:
            deviation, mean = torch.std_mean(per_step, correction=0)
            return (per_step - mean).div_(deviation.add_(_STANDARD_DEVIATION_FLOOR))
        count = self.valid.sum().clamp_(min=1)
        mean = torch.where(self.valid, per_step, 0.0).sum() / count
        centered = torch.where(self.valid, per_step - mean, 0.0)
        deviation = ((centered * centered).sum() / count).sqrt_()
        return centered.div_(deviation.add_(_STANDARD_DEVIATION_FLOOR))


@lru_cache(maxsize=16)
def _averaging(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor made in inference mode could never be used with gradients.
    with torch.inference_mode(False):
        return torch.full((count,), 1.0 / count, dtype=dtype, device=device)
