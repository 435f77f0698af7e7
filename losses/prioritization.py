"""Prioritized sampling of segments by the size of their advantages, and the weights that correct for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Segments without advantage keep a small chance: their advantage may be wrong.
_PRIORITY_FLOOR = 1e-6


@torch.no_grad()
def segment_probabilities(advantage: Tensor, valid: Tensor | None, exponent: float) -> Tensor:
    """How likely each segment is drawn: its mean absolute advantage to the power of `exponent`, normalized.

    Prioritized experience replay (Schaul et al. 2016, equation 1, alpha) with segments for transitions.
    `advantage` and `valid` are `[segments, horizon]`, the result `[segments]`; exponent 0 makes it uniform. A segment
    with an advantage that is not finite is drawn like the one with the largest, so that its loss shows it.
    """
    size = advantage.abs()
    if valid is None:
        size = size.mean(dim=1)
    else:
        size = torch.where(valid, size, 0.0).sum(dim=1) / valid.sum(dim=1).clamp_(min=1)
    finite = size.isfinite()
    largest = torch.where(finite, size, 0.0).max() + _PRIORITY_FLOOR
    size = torch.where(finite, size + _PRIORITY_FLOOR, largest)
    priority = size.div_(largest).pow_(exponent)  # at most 1, so that the sum is finite
    return priority / priority.sum()


@torch.no_grad()
def importance_weights(probabilities: Tensor, drawn: Tensor, exponent: float) -> Tensor:
    """`(segments * P(i)) ** -exponent` of the segments with the indices `drawn`, shape `[n, 1]`.

    Schaul et al. 2016, section 3.4, beta, without the division by the largest: with exponent 1 the weighted
    mean over the drawn segments is an unbiased estimate of the mean over all. Meant for `Minibatch.weight`.
    """
    return (probabilities[drawn] * len(probabilities)).pow_(-exponent).unsqueeze(1)
