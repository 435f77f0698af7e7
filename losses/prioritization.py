"""Prioritised sampling of segments by the size of their advantages, and the weights that correct for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Segments without advantage keep a small chance: their advantage may be wrong.
_PRIORITY_FLOOR = 1e-6


@torch.no_grad()
def segment_probabilities(advantage: Tensor, valid: Tensor | None, exponent: float) -> Tensor:
    """How likely each segment is drawn: its mean absolute advantage to the power of `exponent`, normalised.

    Prioritised experience replay (Schaul et al. 2016, equation 1, alpha) with segments for transitions.
    `advantage` and `valid` are `[segments, horizon]`, the result `[segments]`; exponent 0 makes it uniform. A segment
    whose advantages are not finite counts as one without any: it is for the loss that is computed from it to say so.
    """
    size = advantage.abs()
    if valid is None:
        size = size.mean(dim=1)
    else:
        size = torch.where(valid, size, 0.0).sum(dim=1) / valid.sum(dim=1).clamp_(min=1)
    size.nan_to_num_(nan=0.0, posinf=0.0).add_(_PRIORITY_FLOOR)
    priority = (size / size.max()).pow_(exponent)  # at most 1, so that the sum is finite
    return priority / priority.sum()


@torch.no_grad()
def importance_weights(probabilities: Tensor, drawn: Tensor, exponent: float) -> Tensor:
    """`(segments * P(i)) ** -exponent` of the segments with the indices `drawn`, shape `[n, 1]`.

    Schaul et al. 2016, section 3.4, beta, without the division by the largest: with exponent 1 the weighted
    mean over the drawn segments is an unbiased estimate of the mean over all. Meant for `Minibatch.weight`.
    """
    return (probabilities[drawn] * len(probabilities)).pow_(-exponent).unsqueeze(1)
