"""Means and standardisation over the steps that count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from losses import Minibatch


def test_a_missing_field_is_named_beside_the_ones_there_are() -> None:
    minibatch = Minibatch(fields={"reward": torch.zeros(2), "action": torch.zeros(2)})

    with pytest.raises(KeyError, match=r"no field 'rewards'.*\['action', 'reward'\]"):
        minibatch["rewards"]
    assert "reward" in minibatch
    assert "rewards" not in minibatch


@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_the_mean_is_over_all_steps_where_all_are_valid(shape: tuple[int, ...]) -> None:
    per_step = torch.randn(shape)

    assert Minibatch(fields={}).mean(per_step).item() == pytest.approx(per_step.double().mean().item(), abs=1e-6)


def test_the_mean_leaves_out_invalid_steps_whatever_they_hold() -> None:
    per_step = torch.tensor([[1.0, math.nan, 4.0], [math.inf, 7.0, 0.0]])
    valid = torch.tensor([[True, False, True], [False, True, False]])

    assert Minibatch(fields={}, valid=valid).mean(per_step).item() == 4.0


def test_the_mean_multiplies_by_the_weights_and_divides_by_the_number_of_steps() -> None:
    per_step = torch.tensor([[1.0, 3.0], [5.0, 100.0]])
    weight = torch.tensor([[2.0], [0.5]])
    valid = torch.tensor([[True, True], [True, False]])

    assert Minibatch(fields={}, weight=weight).mean(per_step).item() == (2 + 6 + 2.5 + 50) / 4
    assert Minibatch(fields={}, weight=weight, valid=valid).mean(per_step).item() == (2 + 6 + 2.5) / 3


@pytest.mark.parametrize("valid", [None, torch.tensor([True, False, True, True])])
def test_the_gradient_of_the_mean_is_the_same_share_for_every_valid_step(valid: torch.Tensor | None) -> None:
    per_step = torch.randn(4, requires_grad=True)

    Minibatch(fields={}, valid=valid).mean(per_step).backward()

    counted = torch.ones(4) if valid is None else valid.float()
    torch.testing.assert_close(per_step.grad, counted / counted.sum())


def test_a_mean_taken_first_in_inference_mode_can_be_differentiated_later() -> None:
    per_step = torch.randn(1013, requires_grad=True)
    minibatch = Minibatch(fields={})

    with torch.inference_mode():
        minibatch.mean(per_step)
    minibatch.mean(per_step).backward()

    assert per_step.grad is not None


def test_nothing_valid_gives_zero() -> None:
    minibatch = Minibatch(fields={}, valid=torch.zeros(3, dtype=torch.bool))

    assert minibatch.mean(torch.ones(3)).item() == 0.0
    assert minibatch.standardized(torch.ones(3)).eq(0.0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_standardized_has_mean_zero_and_deviation_one_over_the_valid_steps(masked: bool) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(3.0, 5.0, (6, 9))
    valid = rng.random((6, 9)) < 0.7 if masked else np.ones((6, 9), bool)
    recorded = np.where(valid, numbers, math.nan)
    minibatch = Minibatch(fields={}, valid=torch.tensor(valid) if masked else None)

    result = minibatch.standardized(torch.tensor(recorded)).numpy()

    expected = (numbers - numbers[valid].mean()) / numbers[valid].std()
    np.testing.assert_allclose(result[valid], expected[valid], atol=1e-7)
    assert (result[~valid] == 0.0).all()


@pytest.mark.parametrize("count", [1, 5])
def test_equal_numbers_are_standardized_to_zero(count: int) -> None:
    assert Minibatch(fields={}).standardized(torch.full((count,), 2.0)).eq(0.0).all()
