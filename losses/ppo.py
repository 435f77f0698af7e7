"""Proximal policy optimization (Schulman et al. 2017) as two losses: the actor's and the critic's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F

from losses.actor import Actor
from losses.loss import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from losses.minibatch import Minibatch, PolicyEvaluation
    from losses.schedule import Schedule


class PPOActor(Actor):
    """The clipped surrogate objective (equation 7) and the entropy bonus (equation 9), negated.

    The ratio is to the policy at the start of the epoch's learning, `proximal_log_prob`: the decoupled objective of
    Hilton et al. 2022 where an older policy has acted. `clip` is the paper's epsilon. With `staleness_clip` each step
    is weighted by the ratio of that policy to the one that acted, at most that much. With `target_kl`, the epoch's
    updates end after the first minibatch on which the policy has moved further than that many nats from where it
    began; reading it waits for the device at every minibatch. Tracks `policy_loss`, `entropy`, `approx_kl` (the
    estimator k3 of Schulman 2020, "Approximating KL divergence") and `clip_fraction`, the share of steps whose ratio
    is outside of `1 - clip` to `1 + clip`. Without an `entropy_coefficient` it is 0.01 for actions that are choices,
    and 0.002 where they are numbers.

    Raises `ValueError` where `clip`, `target_kl` or `staleness_clip` is not positive.
    """

    corrects_staleness: ClassVar[bool] = True
    capturable: ClassVar[bool] = True
    policy_gradient: ClassVar[bool] = True

    def __init__(
        self,
        *,
        clip: float = 0.2,
        entropy_coefficient: float | None = None,
        target_kl: float | None = None,
        normalize_advantage: bool = True,
        staleness_clip: float | None = None,
        name: str | None = None,
        weight: float = 1.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(entropy_coefficient=entropy_coefficient, name=name, weight=weight, schedule=schedule)
        if clip <= 0:
            raise ValueError(f"clip must be positive, but is {clip}")
        if target_kl is not None and target_kl <= 0:
            raise ValueError(f"target_kl must be positive (or None for no limit), but is {target_kl}")
        if staleness_clip is not None and staleness_clip <= 0:
            raise ValueError(f"staleness_clip must be positive (or None for no weight), but is {staleness_clip}")
        self.clip = clip
        self.staleness_clip = staleness_clip
        self.target_kl = target_kl
        self.normalize_advantage = normalize_advantage

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        """See the class; needs `proximal_log_prob` and `advantage`, and `log_prob` for a `staleness_clip`."""
        advantage = minibatch["advantage"]
        if self.normalize_advantage:
            advantage = minibatch.standardized(advantage)
        proximal = minibatch["proximal_log_prob"]
        if self.staleness_clip is not None:
            advantage = advantage * (proximal - minibatch["log_prob"]).exp_().clamp_(max=self.staleness_clip)
        log_ratio = evaluation.log_prob - proximal
        ratio = log_ratio.exp()

        # min(r A, clip(r, 1 - e, 1 + e) A) is min(r A, A + e |A|), whose gradient takes a third of the operations;
        # negated before it meets what has gradients, it takes fewer still.
        cost = -advantage
        limit = torch.sub(cost, cost.abs(), alpha=self.clip)
        policy_loss = minibatch.mean((ratio * cost).clamp(min=limit))
        entropy = minibatch.mean(evaluation.entropy)

        excess = ratio.detach() - 1.0
        approx_kl = minibatch.mean(excess - log_ratio.detach())
        self.track("policy_loss", policy_loss)
        self.track("entropy", entropy)
        self.track("approx_kl", approx_kl)
        self.track("clip_fraction", minibatch.mean(excess.abs_().gt_(self.clip)))
        if self.target_kl is not None:
            self.stop_update(approx_kl > self.target_kl)
        return torch.sub(policy_loss, entropy, alpha=self.entropy_coefficient)


class PPOCritic(Loss):
    """`coefficient` times half the mean squared error of the value to the recorded `return`.

    With `clip`, the larger of the errors of the value and of the value kept within `clip` of the recorded
    one, which makes the critic, too, move little from where it was. Tracks `value_loss`, before `coefficient`.

    Raises `ValueError` where `clip` is not positive.
    """

    corrects_staleness: ClassVar[bool] = True
    capturable: ClassVar[bool] = True
    value_gradient: ClassVar[bool] = True

    def __init__(
        self,
        *,
        coefficient: float = 0.5,
        clip: float | None = None,
        name: str | None = None,
        weight: float = 1.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule)
        if clip is not None and clip <= 0:
            raise ValueError(f"clip must be positive (or None for no clipping), but is {clip}")
        self.coefficient = coefficient
        self.clip = clip

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        """See the class; needs the field `return`, and `value` where values are clipped."""
        value, target = evaluation.value, minibatch["return"]
        squared_error = F.mse_loss(value, target, reduction="none")
        if self.clip is not None:
            recorded = minibatch["value"]
            near = recorded + (value - recorded).clamp(-self.clip, self.clip)
            squared_error = torch.maximum(squared_error, F.mse_loss(near, target, reduction="none"))
        mean_squared_error = minibatch.mean(squared_error)
        self.track("value_loss", mean_squared_error.detach() * 0.5)
        return mean_squared_error * (0.5 * self.coefficient)


def ppo_losses(
    *,
    clip: float = 0.2,
    entropy_coefficient: float | None = None,
    target_kl: float | None = None,
    normalize_advantage: bool = True,
    staleness_clip: float | None = None,
    value_coefficient: float = 0.5,
    value_clip: float | None = None,
) -> tuple[PPOActor, PPOCritic]:
    """The two losses whose sum is PPO's objective (Schulman et al. 2017, equation 9), negated."""
    return (
        PPOActor(
            clip=clip,
            entropy_coefficient=entropy_coefficient,
            target_kl=target_kl,
            normalize_advantage=normalize_advantage,
            staleness_clip=staleness_clip,
        ),
        PPOCritic(coefficient=value_coefficient, clip=value_clip),
    )
