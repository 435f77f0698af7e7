"""The hyperbolic tangent against torch's own, few numbers and many: they are computed in different ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orchestrator.policies.activations import tanh

ROWS = pytest.mark.parametrize("rows", [1, 32, 2048])
WIDTH = 64


def numbers(rows: int) -> Tensor:
    x = torch.linspace(-12.0, 12.0, rows * WIDTH).view(rows, WIDTH)
    x.flatten()[:7] = torch.tensor([0.0, 1e-30, -1e-30, 1e30, -1e30, float("inf"), -float("inf")])
    return x


@ROWS
def test_tanh_is_within_2e_7(rows: int) -> None:
    x = numbers(rows)
    expected = torch.tanh(x.double())
    with torch.inference_mode():
        assert (tanh(x.clone()) - expected).abs().max() <= 2e-7
    assert (tanh(x.requires_grad_().clone()) - expected).abs().max() <= 2e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tanh_of_short_floats_is_torchs_own(dtype: torch.dtype) -> None:
    x = numbers(2048).to(dtype)
    assert torch.equal(tanh(x.clone()), torch.tanh(x))


@ROWS
def test_tanh_of_nan_is_nan(rows: int) -> None:
    assert tanh(torch.full((rows, WIDTH), torch.nan)).isnan().all()
    assert tanh(torch.full((rows, WIDTH), torch.nan, requires_grad=True).clone()).isnan().all()


@ROWS
def test_tanh_is_differentiable_twice(rows: int) -> None:
    x, direction = torch.randn(2, rows, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    derivatives: list[list[Tensor]] = []
    for function in (torch.tanh, tanh):
        (first,) = torch.autograd.grad(function(x.clone()), x, direction, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        derivatives.append([first, second])
    for expected, actual in zip(*derivatives, strict=True):
        torch.testing.assert_close(actual, expected)
