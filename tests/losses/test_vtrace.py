"""The losses of IMPALA on targets that both share."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

import losses.vtrace as vtrace_module
from losses import (
    LossContext,
    LossSet,
    Minibatch,
    PolicyEvaluation,
    VTraceActor,
    VTraceCritic,
    VTraceTargets,
    vtrace_losses,
)
from losses.advantage import vtrace

SHAPE = (4, 10)


@pytest.fixture
def minibatch() -> Minibatch:
    generator = torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(SHAPE, dtype=torch.float64, generator=generator)

    terminated = torch.rand(SHAPE, generator=generator) < 0.1
    return Minibatch(
        fields={
            "log_prob": (log_prob := -normal().abs()),
            "proximal_log_prob": log_prob,
            "reward": normal(),
            "next_value": normal().masked_fill(terminated, 0.0),
            "terminated": terminated,
            "truncated": (torch.rand(SHAPE, generator=generator) < 0.1) & ~terminated,
        },
        valid=torch.rand(SHAPE, generator=generator) < 0.9,
    )


@pytest.fixture
def evaluation(minibatch: Minibatch) -> PolicyEvaluation:
    generator = torch.Generator().manual_seed(1)
    noise, entropy, value = torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator)
    return PolicyEvaluation(
        log_prob=(minibatch["log_prob"] + 0.4 * noise).requires_grad_(),
        entropy=entropy.abs().requires_grad_(),
        value=value.clone().requires_grad_(),
        action_parameters=torch.zeros(*SHAPE, 2),
    )


def test_the_gradients_are_those_of_the_papers_section_4_2(
    context: LossContext, minibatch: Minibatch, evaluation: PolicyEvaluation
) -> None:
    pair = LossSet(vtrace_losses(discount=0.9, rho_clip=1.5, entropy_coefficient=0.02, value_coefficient=0.6))
    pair.attach(context)
    advantage, target = vtrace(
        evaluation.log_prob - minibatch["log_prob"],
        minibatch["reward"],
        evaluation.value,
        minibatch["next_value"],
        minibatch["terminated"] | minibatch["truncated"],
        minibatch.valid,
        0.9,
        rho_clip=1.5,
    )

    total, _ = pair.compute(minibatch, evaluation)
    total.backward()

    assert minibatch.valid is not None
    share = minibatch.valid.double() / minibatch.valid.sum()
    value = evaluation.value.detach()
    torch.testing.assert_close(evaluation.log_prob.grad, -advantage * share)
    torch.testing.assert_close(evaluation.entropy.grad, -0.02 * share)
    torch.testing.assert_close(evaluation.value.grad, 0.6 * (value - target) * share)


def test_the_statistics_are_means_over_valid_steps(
    context: LossContext, minibatch: Minibatch, evaluation: PolicyEvaluation
) -> None:
    pair = LossSet(vtrace_losses())
    pair.attach(context)

    pair.compute(minibatch, evaluation)

    assert minibatch.valid is not None
    log_ratio = (evaluation.log_prob.detach() - minibatch["log_prob"])[minibatch.valid].tolist()
    kl = [math.exp(x) - 1 - x for x in log_ratio]
    statistics = context.statistics.read()
    assert statistics["vtrace_actor/approx_kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-5)
    assert statistics.keys() == {
        "vtrace_actor/approx_kl",
        "vtrace_actor/entropy",
        "vtrace_actor/policy_loss",
        "vtrace_critic/value_loss",
    }


def test_a_pair_computes_its_targets_once_per_evaluation(
    context: LossContext, minibatch: Minibatch, evaluation: PolicyEvaluation
) -> None:
    pair = LossSet(vtrace_losses())
    pair.attach(context)

    with patch.object(vtrace_module, "vtrace", wraps=vtrace) as computing:
        pair.compute(minibatch, evaluation)
        assert computing.call_count == 1
        pair.compute(minibatch, replace(evaluation))
        assert computing.call_count == 2


def test_minibatches_of_single_steps_are_refused() -> None:
    step = torch.zeros(5)
    evaluation = PolicyEvaluation(log_prob=step, entropy=step, value=step, action_parameters=step)

    with pytest.raises(ValueError, match=r"whole segments, \[n, horizon\], but this one is \[5\]"):
        VTraceTargets()(Minibatch(fields={}), evaluation)


def test_it_needs_segments_and_corrects_for_stale_experience() -> None:
    pair = LossSet(vtrace_losses())

    assert pair.needs_segments
    assert all(loss.corrects_staleness for loss in pair.losses)
    assert VTraceActor.policy_gradient
    assert [loss.name for loss in (VTraceActor(), VTraceCritic())] == ["vtrace_actor", "vtrace_critic"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discount": 1.01}, "discount must be between 0 and 1, but is 1.01"),
        ({"trace_lambda": -0.1}, "trace_lambda must be between 0 and 1"),
        ({"rho_clip": 0.9}, "0 < c_clip <= rho_clip"),
        ({"c_clip": 0.0}, "0 < c_clip <= rho_clip"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VTraceTargets(**settings)
