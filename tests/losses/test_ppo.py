"""PPO's losses and gradients against the paper's formulas, one step at a time in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from losses import Loss, LossContext, LossSet, Minibatch, PolicyEvaluation, PPOActor, PPOCritic, ppo_losses

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

SHAPE = (6, 8)


def random_case(
    *, seed: int = 0, masked: bool = False, weighted: bool = False, shape: tuple[int, ...] = SHAPE
) -> tuple[Minibatch, PolicyEvaluation]:
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator) * scale

    log_prob = -normal().abs()
    minibatch = Minibatch(
        fields={
            "proximal_log_prob": log_prob + normal(0.3),
            "log_prob": log_prob + normal(0.3),
            "advantage": normal(3.0) + 1.0,
            "return": normal(2.0),
            "value": normal(),
        },
        valid=torch.rand(shape, generator=generator) < 0.7 if masked else None,
        weight=torch.rand(shape[0], *[1] * (len(shape) - 1), dtype=torch.float64, generator=generator) + 0.5
        if weighted
        else None,
    )
    evaluation = PolicyEvaluation(
        log_prob=log_prob.requires_grad_(),
        entropy=normal().abs().requires_grad_(),
        value=normal().requires_grad_(),
        action_parameters=normal(),
    )
    return minibatch, evaluation


def steps(minibatch: Minibatch) -> list[tuple[tuple[int, ...], float]]:
    """The index and the weight in the mean of every valid step."""
    shape = minibatch["advantage"].shape
    valid = torch.ones(shape, dtype=torch.bool) if minibatch.valid is None else minibatch.valid
    weight = torch.ones(shape) if minibatch.weight is None else minibatch.weight.expand(shape)
    count = int(valid.sum())
    return [(i, weight[i].item() / count) for i in np.ndindex(*shape) if valid[i]]


def naive_actor(
    minibatch: Minibatch,
    evaluation: PolicyEvaluation,
    clip: float,
    bonus: float,
    *,
    normalize: bool,
    staleness_clip: float | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    indices = steps(minibatch)
    advantages = np.array([minibatch["advantage"][i].item() for i, _ in indices])
    if normalize:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    policy_loss = entropy = torch.zeros((), dtype=torch.float64)
    kl = clipped = 0.0
    for (i, share), advantage in zip(indices, advantages, strict=True):
        proximal = minibatch["proximal_log_prob"][i]
        ratio = torch.exp(evaluation.log_prob[i] - proximal)
        if staleness_clip is not None:
            advantage *= min(math.exp(proximal - minibatch["log_prob"][i]), staleness_clip)
        unclipped, kept = ratio * advantage, torch.clip(ratio, 1 - clip, 1 + clip) * advantage
        policy_loss = policy_loss - share * torch.min(unclipped, kept)
        entropy = entropy + share * evaluation.entropy[i]
        kl += share * ((ratio.item() - 1) - math.log(ratio.item()))
        clipped += share * (abs(ratio.item() - 1) > clip)
    tracked = {
        "ppo_actor/policy_loss": policy_loss.item(),
        "ppo_actor/entropy": entropy.item(),
        "ppo_actor/approx_kl": kl,
        "ppo_actor/clip_fraction": clipped,
    }
    return policy_loss - bonus * entropy, tracked


def naive_critic(
    minibatch: Minibatch, evaluation: PolicyEvaluation, coefficient: float, clip: float | None
) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i, share in steps(minibatch):
        value, target, recorded = evaluation.value[i], minibatch["return"][i], minibatch["value"][i]
        error = (value - target) ** 2
        if clip is not None:
            near = recorded + torch.clip(value - recorded, -clip, clip)
            error = torch.max(error, (near - target) ** 2)
        total = total + share * 0.5 * error
    return coefficient * total


def gradients(loss: torch.Tensor, evaluation: PolicyEvaluation) -> list[torch.Tensor]:
    leaves = [evaluation.log_prob, evaluation.entropy, evaluation.value]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def attached(loss: Loss, context: LossContext) -> Any:
    loss.attach(context)
    return loss


@pytest.mark.parametrize("staleness_clip", [None, 1.1])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("masked", "weighted"), [(False, False), (True, False), (False, True), (True, True)])
def test_the_actors_loss_gradient_and_statistics_are_the_papers(
    context: LossContext, masked: bool, weighted: bool, normalize: bool, staleness_clip: float | None
) -> None:
    minibatch, evaluation = random_case(masked=masked, weighted=weighted)
    actor = attached(
        PPOActor(clip=0.2, entropy_coefficient=0.03, normalize_advantage=normalize, staleness_clip=staleness_clip),
        context,
    )

    loss = actor.compute(minibatch, evaluation)

    expected, tracked = naive_actor(
        minibatch, evaluation, 0.2, 0.03, normalize=normalize, staleness_clip=staleness_clip
    )
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(gradients(loss, evaluation), gradients(expected, evaluation), strict=True):
        torch.testing.assert_close(found, wanted)
    assert context.statistics.read() == pytest.approx(tracked, rel=1e-5)


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize(("masked", "weighted"), [(False, False), (True, False), (False, True), (True, True)])
def test_the_critics_loss_and_gradient_are_the_papers(
    context: LossContext, masked: bool, weighted: bool, clip: float | None
) -> None:
    minibatch, evaluation = random_case(masked=masked, weighted=weighted)
    critic = attached(PPOCritic(coefficient=0.7, clip=clip), context)

    loss = critic.compute(minibatch, evaluation)

    expected = naive_critic(minibatch, evaluation, 0.7, clip)
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(gradients(loss, evaluation), gradients(expected, evaluation), strict=True):
        torch.testing.assert_close(found, wanted)
    value_loss = context.statistics.read()["ppo_critic/value_loss"]
    assert value_loss == pytest.approx(expected.item() / 0.7, rel=1e-5)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "moves"),
    [
        (math.log(1.3), 1.0, False),
        (math.log(1.3), -1.0, True),
        (math.log(0.7), 1.0, True),
        (math.log(0.7), -1.0, False),
        (0.0, 1.0, True),
        (0.0, -1.0, True),
    ],
)
def test_only_a_move_beyond_the_clip_in_the_advantages_direction_has_no_gradient(
    context: LossContext, log_ratio: float, advantage: float, moves: bool
) -> None:
    actor = attached(PPOActor(entropy_coefficient=0.0, normalize_advantage=False), context)
    log_prob = torch.tensor([log_ratio - 1.0], requires_grad=True)
    minibatch = Minibatch(fields={"proximal_log_prob": torch.tensor([-1.0]), "advantage": torch.tensor([advantage])})
    zero = torch.zeros(1)

    actor.compute(
        minibatch, PolicyEvaluation(log_prob=log_prob, entropy=zero, value=zero, action_parameters=zero)
    ).backward()

    assert log_prob.grad is not None
    assert bool(log_prob.grad.ne(0.0).item()) is moves


@pytest.mark.parametrize(("factor", "stops"), [(1.01, False), (0.99, True)])
def test_the_update_stops_where_the_kl_is_above_its_target(context: LossContext, factor: float, stops: bool) -> None:
    minibatch, evaluation = random_case()
    _, tracked = naive_actor(minibatch, evaluation, 0.2, 0.0, normalize=True)
    losses = LossSet(ppo_losses(target_kl=tracked["ppo_actor/approx_kl"] * factor))
    losses.attach(context)
    losses.begin_epoch()

    losses.compute(minibatch, evaluation)

    assert losses.stop_requested is stops


def test_the_two_losses_add_up_to_the_papers_objective(context: LossContext) -> None:
    minibatch, evaluation = random_case()
    losses = LossSet(ppo_losses(clip=0.1, entropy_coefficient=0.02, value_coefficient=0.4, value_clip=0.3))
    losses.attach(context)

    total, components = losses.compute(minibatch, evaluation)

    actor, _ = naive_actor(minibatch, evaluation, 0.1, 0.02, normalize=True)
    critic = naive_critic(minibatch, evaluation, 0.4, 0.3)
    torch.testing.assert_close(components, torch.stack([actor, critic]).detach())
    torch.testing.assert_close(total, actor + critic)


def test_computing_does_not_wait_for_the_device_and_a_target_kl_only_at_the_end(
    context: LossContext, no_waiting: Callable[[], AbstractContextManager[None]]
) -> None:
    free, bound = LossSet(ppo_losses(value_clip=0.2)), LossSet(ppo_losses(target_kl=0.01))
    free.attach(context)
    bound.attach(context)

    for masked in (False, True):
        minibatch, evaluation = random_case(masked=masked, weighted=masked)
        with no_waiting():
            free.compute(minibatch, evaluation)[0].backward(retain_graph=True)
            bound.compute(minibatch, evaluation)[0].backward()
    with pytest.raises(AssertionError, match="waits"), no_waiting():
        _ = bound.stop_requested


def test_the_experience_is_left_as_it_was(context: LossContext) -> None:
    minibatch, evaluation = random_case(masked=True)
    before = {name: field.clone() for name, field in minibatch.fields.items()}
    losses = LossSet(ppo_losses(value_clip=0.2))
    losses.attach(context)

    losses.compute(minibatch, evaluation)[0].backward()

    assert all(torch.equal(minibatch[name], field) for name, field in before.items())


def test_it_corrects_for_stale_experience() -> None:
    assert all(loss.corrects_staleness for loss in ppo_losses())
    assert PPOActor.policy_gradient


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPOActor(clip=0.0), "clip must be positive"),
        (lambda: PPOActor(target_kl=-0.1), "target_kl must be positive"),
        (lambda: PPOCritic(clip=0.0), "clip must be positive"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Loss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("continuous", "coefficient"), [(False, 0.01), (True, 0.002)])
def test_the_entropy_bonus_is_by_default_smaller_for_numbers(
    continuous: bool, coefficient: float, context: LossContext
) -> None:
    minibatch, evaluation = random_case()
    context = replace(context, continuous=continuous)

    default, with_it, without = (
        attached(PPOActor(entropy_coefficient=weight), context).compute(minibatch, evaluation).item()
        for weight in (None, coefficient, 0.0)
    )

    assert default == with_it != without


def test_an_entropy_bonus_that_nobody_has_set_can_be_lowered_while_training(context: LossContext) -> None:
    actor = attached(PPOActor(), context)
    actor.entropy_coefficient *= 0.5
    assert actor.entropy_coefficient == 0.005
