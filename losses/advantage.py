"""Advantages of recorded segments: generalized advantage estimation and V-trace, over one parallel scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@torch.no_grad()
def discounted_scan(delta: Tensor, coefficient: Tensor) -> Tensor:
    """`x[:, t] = delta[:, t] + coefficient[:, t] * x[:, t + 1]`, with `x` 0 after the last step.

    Both are `[segments, horizon]`, and so is the result, which has no gradient. The recurrence is associative
    (Hillis and Steele 1986): after round k, `x[:, t]` covers `2**k` steps, and ceil(log2(horizon)) rounds of
    whole-tensor operations do what a loop would need `horizon` rounds for.
    """
    x = delta.clone()
    horizon = x.shape[1]
    reach = 1
    while reach < horizon:
        # Steps closer than `reach` to the end are complete; `coefficient` keeps only what is still needed.
        coefficient = coefficient[:, : horizon - reach]
        x[:, : horizon - reach] += coefficient * x[:, reach:]
        if 2 * reach < horizon:
            coefficient = coefficient[:, :-reach] * coefficient[:, reach:]
        reach *= 2
    return x


@torch.no_grad()
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    episode_end: Tensor,
    valid: Tensor | None,
    discount: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, equation 16) and the returns it implies.

    All tensors are `[segments, horizon]`. `next_value` is the value of the state that the step led to: 0 where
    the episode terminated, the value of its last observation where it was truncated. `episode_end` is True
    where it did either. `valid` is False at steps that are no transition (`None`: nowhere): they get advantage
    0, and nothing passes over them. Returns `(advantage, advantage + value)`, without gradients.
    """
    delta = torch.add(reward, next_value, alpha=discount).sub_(value)
    cut = episode_end
    if valid is not None:
        # With advantage 0 at an invalid step, the step before it gets nothing from it either.
        invalid = valid.logical_not()
        delta.masked_fill_(invalid, 0.0)
        cut = cut | invalid
    coefficient = torch.full_like(delta, discount * gae_lambda).masked_fill_(cut, 0.0)
    advantage = discounted_scan(delta, coefficient)
    return advantage, advantage + value


@torch.no_grad()
def vtrace(
    log_ratio: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    episode_end: Tensor,
    valid: Tensor | None,
    discount: float,
    *,
    trace_lambda: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """V-trace (Espeholt et al. 2018, equation 1): `(policy-gradient advantage, value target)`.

    All tensors are `[segments, horizon]`. `log_ratio` is the current policy's log-probability of the recorded
    action less the recorded one, and `value` the current policy's. `next_value`, as for `gae`, is used only
    where the next state's current value is unknown: at the end of episodes and of the segment. `trace_lambda`
    is the factor of c of the paper's remark 2. The first result is `rho * (r + discount * v' - V)` of the
    paper's section 4.2, `v'` being the next state's target. Invalid steps get advantage 0 and the target
    `value`. No result has gradients.
    """
    ratio = log_ratio.exp()
    rho = ratio.clamp(max=rho_clip)
    carries_on = episode_end.logical_not()
    if valid is not None:
        carries_on &= valid
        carries_on[:, :-1] &= valid[:, 1:]
        rho = torch.where(valid, rho, 0.0)
    next_state_value = next_value.clone()
    next_state_value[:, :-1] = torch.where(carries_on[:, :-1], value[:, 1:], next_value[:, :-1])

    temporal_difference = torch.add(reward, next_state_value, alpha=discount).sub_(value)
    if valid is not None:
        temporal_difference = torch.where(valid, temporal_difference, 0.0)
    coefficient = torch.where(carries_on, ratio.clamp(max=c_clip) * (discount * trace_lambda), 0.0)
    correction = discounted_scan(rho * temporal_difference, coefficient)

    # v' - V(s') is the next step's correction, so the advantage needs no second look at the values.
    advantage = temporal_difference
    advantage[:, :-1] += torch.where(carries_on[:, :-1], correction[:, 1:], 0.0) * discount
    return advantage.mul_(rho), correction + value
