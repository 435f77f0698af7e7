"""Nonlinearities of networks by name. All of them may write to their argument: on a CPU, new memory costs more than the
computation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.compiler import is_compiling
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

# With AVX2 and AVX-512, torch's sigmoid is several times faster than its tanh; without, it is slower.
_FAST_SIGMOID = torch.backends.cpu.get_cpu_capability().startswith("AVX")
# Element counts from which torch's own tanh then costs more than three cheaper operations, and than these together with
# a node of the graph that is written in Python; see scripts/bench/networks.py.
_MANY = 1 << 11
_MANY_WITH_GRADIENT = 1 << 15
_PRECISE = (torch.float32, torch.float64)
_MINUS_ONE = torch.tensor(-1.0, device="cpu")


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent, off by at most 2e-7 (not relative to it); as often differentiable as torch's own, though
    not by `torch.func` where `x` has many elements."""
    if not (_FAST_SIGMOID and x.is_cpu) or is_compiling() or x.numel() < _MANY or x.dtype not in _PRECISE:
        return torch.tanh_(x)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return fast_tanh(x)
    return _Tanh.apply(x) if x.numel() >= _MANY_WITH_GRADIENT else torch.tanh_(x)


def fast_tanh(x: Tensor) -> Tensor:
    """`tanh` in place, for float32 and float64 on a CPU; without gradients."""
    if not _FAST_SIGMOID or x.numel() < _MANY:
        return torch.tanh_(x)
    # tanh(x) = 2 sigmoid(2 x) - 1
    return torch.add(_MINUS_ONE, x.mul_(2.0).sigmoid_(), alpha=2.0, out=x)


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = fast_tanh(x)
        ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradients[0], y)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"tanh": tanh, "relu": torch.relu_, "silu": F.silu}
