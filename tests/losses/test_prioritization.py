"""Which segments are drawn more often, and that their weights make up for it."""

from __future__ import annotations

import pytest
import torch

from losses import importance_weights, segment_probabilities


def test_probabilities_follow_the_mean_absolute_advantage() -> None:
    advantage = torch.tensor([[1.0, -1.0], [-2.0, 4.0], [4.0, 100.0], [0.0, 0.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True], [True, True], [True, False], [True, True]])

    probabilities = segment_probabilities(advantage, valid, 2.0)

    expected = torch.tensor([1.0, 9.0, 16.0, 0.0], dtype=torch.float64) / 26.0
    torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-6)
    assert probabilities.gt(0.0).all()


def test_segments_that_are_not_finite_are_drawn_like_the_one_with_the_largest_advantage() -> None:
    advantage = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0], [3e38, 3e38], [1e38, 1e38], [0.0, 0.0]])

    probabilities = segment_probabilities(advantage, None, 2.0)

    torch.testing.assert_close(probabilities, torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0]))
    assert segment_probabilities(torch.full((2, 3), float("nan")), None, 1.0).tolist() == [0.5, 0.5]


def test_exponent_zero_draws_all_alike() -> None:
    probabilities = segment_probabilities(torch.randn(5, 7), None, 0.0)

    torch.testing.assert_close(probabilities, torch.full((5,), 0.2))


def test_the_advantages_are_left_as_they_were() -> None:
    advantage = torch.tensor([[-1.0, 1.0]])

    segment_probabilities(advantage, None, 1.0)

    assert advantage.tolist() == [[-1.0, 1.0]]


def test_weights_with_exponent_one_make_the_weighted_mean_unbiased() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    numbers = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)

    weights = importance_weights(probabilities, torch.arange(3), 1.0)

    assert weights.shape == (3, 1)
    assert (probabilities * weights.squeeze(1) * numbers).sum().item() == pytest.approx(numbers.mean().item())
    assert importance_weights(probabilities, torch.tensor([2, 2]), 0.0).eq(1.0).all()
