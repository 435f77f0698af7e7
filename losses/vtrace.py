"""The actor-critic of IMPALA (Espeholt et al. 2018): two losses on V-trace targets of whole segments."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F

from losses.actor import Actor
from losses.advantage import vtrace
from losses.loss import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from losses.minibatch import Minibatch, PolicyEvaluation
    from losses.schedule import Schedule


class VTraceTargets:
    """V-trace advantages and value targets of minibatches, computed once for the losses that share it.

    `rho_clip` bounds the importance weights of the temporal differences and so decides which policy's values
    are learned; `c_clip` bounds those along the trace and so decides how fast. `trace_lambda` shortens the trace.

    Raises `ValueError` where `discount` or `trace_lambda` is not between 0 and 1, or where `rho_clip` is less
    than `c_clip`, which the paper excludes, or either is not positive.
    """

    def __init__(
        self,
        *,
        discount: float = 0.99,
        trace_lambda: float = 1.0,
        rho_clip: float = 1.0,
        c_clip: float = 1.0,
    ) -> None:
        for setting, number in (("discount", discount), ("trace_lambda", trace_lambda)):
            if not 0.0 <= number <= 1.0:
                raise ValueError(f"{setting} must be between 0 and 1, but is {number}")
        if not 0.0 < c_clip <= rho_clip:
            raise ValueError(f"V-trace needs 0 < c_clip <= rho_clip, but c_clip is {c_clip} and rho_clip is {rho_clip}")
        self.discount = discount
        self.trace_lambda = trace_lambda
        self.rho_clip = rho_clip
        self.c_clip = c_clip
        self._latest: tuple[weakref.ref[PolicyEvaluation], tuple[Tensor, Tensor]] | None = None

    def __call__(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> tuple[Tensor, Tensor]:
        """`(advantage, target)`, both `[n, horizon]` without gradients, for a minibatch of whole segments.

        Raises `ValueError` where the minibatch holds single steps.
        """
        if self._latest is not None and self._latest[0]() is evaluation:
            return self._latest[1]
        if evaluation.log_prob.dim() != 2:
            raise ValueError(
                "V-trace needs minibatches of whole segments, [n, horizon], but this one is "
                f"{list(evaluation.log_prob.shape)}"
            )
        targets = vtrace(
            evaluation.log_prob.detach() - minibatch["log_prob"],
            minibatch["reward"],
            evaluation.value.detach(),
            minibatch["next_value"],
            minibatch["terminated"] | minibatch["truncated"],
            minibatch.valid,
            self.discount,
            trace_lambda=self.trace_lambda,
            rho_clip=self.rho_clip,
            c_clip=self.c_clip,
        )
        self._latest = weakref.ref(evaluation), targets
        return targets


class VTraceActor(Actor):
    """The policy gradient of the paper's section 4.2 along V-trace advantages, and the entropy bonus, whose coefficient
    is by default that of `PPOActor`.

    Tracks `policy_loss`, `entropy` and `approx_kl`, as `PPOActor` does, which `proximal_log_prob` is needed for.
    """

    corrects_staleness: ClassVar[bool] = True
    capturable: ClassVar[bool] = True
    policy_gradient: ClassVar[bool] = True
    needs_segments: ClassVar[bool] = True

    def __init__(
        self,
        *,
        targets: VTraceTargets | None = None,
        entropy_coefficient: float | None = None,
        name: str = "vtrace_actor",
        weight: float = 1.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(entropy_coefficient=entropy_coefficient, name=name, weight=weight, schedule=schedule)
        self.targets = VTraceTargets() if targets is None else targets

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        """See the class; needs `log_prob`, `reward`, `next_value`, `terminated` and `truncated`."""
        advantage, _ = self.targets(minibatch, evaluation)
        policy_loss = -minibatch.mean(advantage * evaluation.log_prob)
        entropy = minibatch.mean(evaluation.entropy)
        log_ratio = evaluation.log_prob.detach() - minibatch["proximal_log_prob"]
        self.track("policy_loss", policy_loss)
        self.track("entropy", entropy)
        self.track("approx_kl", minibatch.mean(log_ratio.expm1() - log_ratio))
        return torch.sub(policy_loss, entropy, alpha=self.entropy_coefficient)


class VTraceCritic(Loss):
    """`coefficient` times half the mean squared error of the value to its V-trace target.

    Tracks `value_loss`, before `coefficient`.
    """

    corrects_staleness: ClassVar[bool] = True
    capturable: ClassVar[bool] = True
    value_gradient: ClassVar[bool] = True
    needs_segments: ClassVar[bool] = True

    def __init__(
        self,
        *,
        targets: VTraceTargets | None = None,
        coefficient: float = 0.5,
        name: str = "vtrace_critic",
        weight: float = 1.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule)
        self.targets = VTraceTargets() if targets is None else targets
        self.coefficient = coefficient

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        """See the class; needs `log_prob`, `reward`, `next_value`, `terminated` and `truncated`."""
        _, target = self.targets(minibatch, evaluation)
        mean_squared_error = minibatch.mean(F.mse_loss(evaluation.value, target, reduction="none"))
        self.track("value_loss", mean_squared_error.detach() * 0.5)
        return mean_squared_error * (0.5 * self.coefficient)


def vtrace_losses(
    *,
    discount: float = 0.99,
    trace_lambda: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    entropy_coefficient: float | None = None,
    value_coefficient: float = 0.5,
) -> tuple[VTraceActor, VTraceCritic]:
    """The two losses of IMPALA, on one computation of the V-trace targets."""
    targets = VTraceTargets(discount=discount, trace_lambda=trace_lambda, rho_clip=rho_clip, c_clip=c_clip)
    return (
        VTraceActor(targets=targets, entropy_coefficient=entropy_coefficient),
        VTraceCritic(targets=targets, coefficient=value_coefficient),
    )
