"""The distributions of actions against torch's own, in float64, and their samples against their probabilities."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from orchestrator.policies import (
    ActionDistribution,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    distribution_for,
)

LEADING = [(), (7,), (3, 5)]


def random_parameters(distribution: ActionDistribution, leading: tuple[int, ...], spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return spread * torch.randn((*leading, distribution.parameters), generator=generator, dtype=torch.float64)


def sampled(distribution: ActionDistribution, parameters: torch.Tensor) -> torch.Tensor:
    noise = distribution.noise(tuple(parameters.shape[:-1]), torch.Generator().manual_seed(2))
    return distribution.sample(parameters, noise)


@pytest.mark.parametrize("leading", LEADING)
def test_a_categorical_has_the_log_probability_and_entropy_of_torchs(leading: tuple[int, ...]) -> None:
    distribution = Categorical(5)
    parameters = random_parameters(distribution, leading)
    action = sampled(distribution, parameters)
    reference = torch.distributions.Categorical(logits=parameters)
    log_prob, entropy = distribution.log_prob_and_entropy(parameters, action)
    torch.testing.assert_close(log_prob, reference.log_prob(action))
    torch.testing.assert_close(entropy, reference.entropy())
    torch.testing.assert_close(distribution.log_prob(parameters, action), reference.log_prob(action))


@pytest.mark.parametrize("leading", LEADING)
def test_a_multi_categorical_is_the_sum_of_categoricals_of_different_sizes(leading: tuple[int, ...]) -> None:
    distribution = MultiCategorical((2, 5, 3))
    parameters = random_parameters(distribution, leading)
    action = sampled(distribution, parameters)
    assert action.shape == (*leading, 3)
    parts = [torch.distributions.Categorical(logits=part) for part in parameters.split((2, 5, 3), -1)]
    expected = torch.stack([part.log_prob(action[..., index]) for index, part in enumerate(parts)]).sum(0)
    log_prob, entropy = distribution.log_prob_and_entropy(parameters, action)
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(entropy, torch.stack([part.entropy() for part in parts]).sum(0))
    torch.testing.assert_close(distribution.log_prob(parameters, action), expected)


@pytest.mark.parametrize("leading", LEADING)
def test_bits_are_the_sum_of_torchs_bernoullis(leading: tuple[int, ...]) -> None:
    distribution = Bernoulli(4)
    parameters = random_parameters(distribution, leading, spread=9.0).requires_grad_()
    action = sampled(distribution, parameters.detach())
    assert action.shape == (*leading, 4)
    reference = torch.distributions.Bernoulli(logits=parameters)
    log_prob, entropy = distribution.log_prob_and_entropy(parameters, action)
    torch.testing.assert_close(log_prob, reference.log_prob(action.double()).sum(-1))
    torch.testing.assert_close(entropy, reference.entropy().sum(-1))
    torch.testing.assert_close(distribution.log_prob(parameters, action), log_prob)
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), parameters)
    expected = (reference.log_prob(action.double()) + reference.entropy()).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, parameters)[0])


def test_bits_are_drawn_with_their_probabilities() -> None:
    distribution = Bernoulli(3)
    parameters = torch.tensor([-1.0, 0.0, 2.0]).expand(40_000, 3)
    share = sampled(distribution, parameters).float().mean(0)
    torch.testing.assert_close(share, parameters[0].sigmoid(), atol=0.01, rtol=0.0)
    assert distribution.mode(torch.tensor([-1.0, 0.5, 2.0])).tolist() == [0, 1, 1]
    assert distribution.defined(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, np.nan]])).tolist() == [True, False]


@pytest.mark.parametrize("leading", LEADING)
def test_a_gaussian_sums_the_log_probabilities_of_its_dimensions(leading: tuple[int, ...]) -> None:
    distribution = DiagonalGaussian(4)
    parameters = random_parameters(distribution, leading, spread=1.0)
    action = sampled(distribution, parameters)
    mean, log_std = parameters.split(4, -1)
    reference = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    log_prob, entropy = distribution.log_prob_and_entropy(parameters, action)
    torch.testing.assert_close(log_prob, reference.log_prob(action))
    torch.testing.assert_close(entropy, reference.entropy())
    torch.testing.assert_close(distribution.log_prob(parameters, action), reference.log_prob(action))


@pytest.mark.parametrize("distribution", [Categorical(3), MultiCategorical((2, 3)), DiagonalGaussian(2)])
def test_log_probability_and_entropy_have_the_gradients_of_torchs(distribution: ActionDistribution) -> None:
    parameters = random_parameters(distribution, (6,)).requires_grad_()
    action = sampled(distribution, parameters).detach()
    log_prob, entropy = distribution.log_prob_and_entropy(parameters, action)
    (ours,) = torch.autograd.grad((log_prob + 0.3 * entropy).sum(), parameters)
    if isinstance(distribution, DiagonalGaussian):
        mean, log_std = parameters.split(2, -1)
        reference = torch.distributions.Normal(mean, log_std.exp())
        total = (reference.log_prob(action) + 0.3 * reference.entropy()).sum()
    else:
        sizes = distribution.sizes if isinstance(distribution, MultiCategorical) else (3,)
        total = torch.zeros((), dtype=torch.float64)
        for index, part in enumerate(parameters.split(sizes, -1)):
            chosen = action if action.dim() == 1 else action[..., index]
            categorical = torch.distributions.Categorical(logits=part)
            total = total + (categorical.log_prob(chosen) + 0.3 * categorical.entropy()).sum()
    (theirs,) = torch.autograd.grad(total, parameters)
    torch.testing.assert_close(ours, theirs)


def test_a_certain_choice_has_no_entropy_and_finite_gradients() -> None:
    parameters = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    log_prob, entropy = Categorical(3).log_prob_and_entropy(parameters, torch.tensor([0]))
    assert log_prob.item() == 0.0
    assert entropy.item() == 0.0
    (log_prob + entropy).sum().backward()
    assert parameters.grad is not None
    assert bool(parameters.grad.isfinite().all())


@pytest.mark.parametrize("sizes", [(4,), (2, 3)])
def test_forbidden_choices_are_as_in_torchs_own_and_never_drawn(sizes: tuple[int, ...]) -> None:
    distribution = Categorical(*sizes) if len(sizes) == 1 else MultiCategorical(sizes)
    parameters = random_parameters(distribution, (500,))
    parameters[:, 1] = -torch.inf
    parameters[250:, -1] = -torch.inf
    parameters.requires_grad_()
    assert bool(distribution.defined(parameters).all())
    action = sampled(distribution, parameters.detach()).reshape(500, len(sizes))
    assert action[:, 0].ne(1).all()
    assert action[250:, -1].ne(sizes[-1] - 1).all()
    assert distribution.mode(parameters).reshape(500, -1)[:, 0].ne(1).all()
    parts = [torch.distributions.Categorical(logits=part) for part in parameters.split(sizes, -1)]
    expected = torch.stack([part.log_prob(action[:, index]) for index, part in enumerate(parts)]).sum(0)
    entropy = torch.stack([part.entropy() for part in parts]).sum(0)
    ours = distribution.log_prob_and_entropy(parameters, action.reshape(500, *distribution.action_shape))
    for own, theirs in zip(ours, (expected, entropy), strict=True):
        torch.testing.assert_close(own, theirs)
        (own_gradient,) = torch.autograd.grad(own.sum(), parameters, retain_graph=True)
        (their_gradient,) = torch.autograd.grad(theirs.sum(), parameters, retain_graph=True)
        torch.testing.assert_close(own_gradient, their_gradient)


@pytest.mark.parametrize("poison", [-torch.inf, torch.nan, torch.inf])
def test_it_is_known_where_parameters_make_no_distribution(poison: float) -> None:
    for distribution, part in (
        (Categorical(3), slice(0, 3)),
        (MultiCategorical((2, 3)), slice(2, 5)),
        (DiagonalGaussian(2), slice(1, 2)),
    ):
        parameters = random_parameters(distribution, (2,))
        parameters[1, part] = poison
        assert distribution.defined(parameters).tolist() == [True, False]


def test_a_categorical_samples_each_choice_as_often_as_it_is_probable() -> None:
    distribution = Categorical(4)
    parameters = torch.tensor([0.5, -1.0, 1.5, 0.0])
    draws = 40_000
    samples = sampled(distribution, parameters.expand(draws, 4))
    frequency = torch.bincount(samples, minlength=4) / draws
    torch.testing.assert_close(frequency, parameters.softmax(-1), atol=0.01, rtol=0)


def test_a_multi_categorical_samples_its_parts_independently() -> None:
    distribution = MultiCategorical((2, 3))
    parameters = torch.tensor([0.7, -0.7, 0.0, 1.0, -1.0])
    draws = 40_000
    samples = sampled(distribution, parameters.expand(draws, 5))
    joint = torch.zeros(2, 3).index_put_((samples[:, 0], samples[:, 1]), torch.tensor(1.0 / draws), accumulate=True)
    expected = parameters[:2].softmax(-1)[:, None] * parameters[2:].softmax(-1)
    torch.testing.assert_close(joint, expected, atol=0.01, rtol=0)


def test_a_gaussian_samples_with_its_mean_and_standard_deviation() -> None:
    distribution = DiagonalGaussian(2)
    parameters = torch.tensor([1.0, -2.0, 0.5, -1.0])
    samples = sampled(distribution, parameters.expand(40_000, 4))
    torch.testing.assert_close(samples.mean(0), parameters[:2], atol=0.03, rtol=0)
    torch.testing.assert_close(samples.std(0), parameters[2:].exp(), atol=0.03, rtol=0)


@pytest.mark.parametrize("distribution", [Categorical(3), MultiCategorical((2, 3)), DiagonalGaussian(2)])
def test_noise_for_a_whole_rollout_gives_the_samples_of_each_step(distribution: ActionDistribution) -> None:
    parameters = random_parameters(distribution, (6, 4)).float()
    noise = distribution.noise((6, 4), torch.Generator().manual_seed(3))
    actions = distribution.sample(parameters, noise)
    assert actions.shape == (6, 4, *distribution.action_shape)
    assert actions.dtype == distribution.action_dtype
    assert torch.equal(
        actions, torch.stack([distribution.sample(p, n) for p, n in zip(parameters, noise, strict=True)])
    )
    assert torch.equal(noise, distribution.noise((6, 4), torch.Generator().manual_seed(3)))


def test_the_mode_is_the_likeliest_action() -> None:
    assert Categorical(3).mode(torch.tensor([[0.0, 2.0, 1.0]])).tolist() == [1]
    assert MultiCategorical((2, 3)).mode(torch.tensor([[1.0, 0.0, 0.0, 1.0, 2.0]])).tolist() == [[0, 2]]
    assert DiagonalGaussian(2).mode(torch.tensor([[1.0, 2.0, 9.0, 9.0]])).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Discrete(3), Categorical(3)),
        (spaces.Discrete(3, start=5), Categorical(3)),
        (spaces.MultiDiscrete([2, 4]), MultiCategorical((2, 4))),
        (spaces.Box(-1.0, 1.0, (3,)), DiagonalGaussian(3)),
        (spaces.Box(-1.0, 1.0, (2, 3)), DiagonalGaussian(6)),
        (spaces.Box(0, 9, (2,), np.int64), DiagonalGaussian(2)),
    ],
)
def test_every_supported_action_space_has_its_distribution(
    space: gymnasium.Space[object], expected: ActionDistribution
) -> None:
    assert distribution_for(space) == expected


@pytest.mark.parametrize(
    "space",
    [spaces.Box(0, 1, (2,), np.bool_), spaces.MultiDiscrete([[2, 3]]), spaces.Text(3)],
)
def test_an_unsupported_action_space_is_an_error_that_says_what_is_supported(space: gymnasium.Space[object]) -> None:
    with pytest.raises(ValueError, match="supported are Discrete, MultiDiscrete with one axis, MultiBinary, and Box"):
        distribution_for(space)
