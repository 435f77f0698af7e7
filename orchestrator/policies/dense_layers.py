"""Fully connected layers with gradients on a CPU: the whole stack as one node of autograd's graph, computed in parts of
the batch whose activations stay in the processor's cache.

The same maths as one operation after another, up to rounding: a weight's gradient is the sum of those of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from orchestrator.policies.activations import fast_tanh

if TYPE_CHECKING:
    from collections.abc import Sequence

_PART = 2048
"""Rows of a batch that are computed at once."""
_LEAST_ROWS = 4 * _PART
"""Below, all activations are near the processor anyway, and the parts save nothing; see scripts/bench/minibatch.py."""
_FEW = 16
"""Outputs of a layer below which a CPU multiplies several times faster with weights stored `[outputs, inputs]`, and
computes their gradient several times faster in that order."""

_relu_backward: Callable[..., Tensor] = torch.ops.aten.threshold_backward.grad_input
_tanh_backward: Callable[..., Tensor] = torch.ops.aten.tanh_backward.grad_input

# By name, what an activation does in place, and its gradient from that of its result and the result, also in place.
_IN_PLACE: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "tanh": (fast_tanh, lambda gradient, y: _tanh_backward(gradient, y, grad_input=gradient)),
    "relu": (torch.relu_, lambda gradient, y: _relu_backward(gradient, y, 0.0, grad_input=gradient)),
}


def fits(x: Tensor, activation: str, parameters: Sequence[Tensor]) -> bool:
    """Whether `dense_layers` computes this, and faster than one operation after another."""
    return (
        not is_compiling()  # an exported graph is for any number of rows
        and len(x) >= _LEAST_ROWS
        and x.is_cpu
        and torch.is_grad_enabled()
        and activation in _IN_PLACE
        and any(parameter.requires_grad for parameter in parameters)
        and all(tensor.dtype is torch.float32 for tensor in (x, *parameters))
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
    )


def dense_layers(x: Tensor, activation: str, linear_output: bool, parameters: Sequence[Tensor]) -> Tensor:
    """`[n, outputs]` of `x` `[n, inputs]`, through layers whose weights `[inputs, outputs]` and biases take turns.

    With `linear_output` the last layer has no activation.
    """
    return _Layers.apply(x, activation, linear_output, *parameters)


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, linear_output: bool, *parameters: Tensor) -> Tensor:
        weights = [weight.t().contiguous().t() if weight.shape[1] < _FEW else weight for weight in parameters[::2]]
        biases = parameters[1::2]
        activate, _ = _IN_PLACE[activation]
        activated = len(weights) - 1 if linear_output else len(weights)
        outputs = [x.new_empty(len(x), len(bias)) for bias in biases]
        for before, *results in zip(*(tensor.split(_PART) for tensor in (x, *outputs)), strict=True):
            for index, result in enumerate(results):
                torch.addmm(biases[index], before, weights[index], out=result)
                if index < activated:
                    activate(result)
                before = result
        ctx.activation, ctx.linear_output = activation, linear_output
        ctx.save_for_backward(x, *parameters, *outputs[:activated])
        return outputs[-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        needed: list[bool] = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        x, parameters, activated = saved[0], saved[1 : len(needed)], saved[len(needed) :]
        if torch.is_grad_enabled():
            found = _differentiable(ctx, x, parameters, needed, gradients[0])
        else:
            found = _in_parts(ctx, x, parameters, activated, needed, gradients[0])
        return found[0], None, None, *found[1:]


def _in_parts(
    ctx: Any, x: Tensor, parameters: Sequence[Tensor], activated: Sequence[Tensor], needed: list[bool], gradient: Tensor
) -> list[Tensor | None]:
    weights = parameters[::2]
    _, differentiate = _IN_PLACE[ctx.activation]
    found = [torch.zeros_like(one) if need else None for one, need in zip((x, *parameters), needed, strict=True)]
    # Nothing below the first layer that has something to learn needs a gradient.
    lowest = 0 if needed[0] else (needed.index(True) - 1) // 2
    for begin in range(0, len(x), _PART):
        rows = slice(begin, begin + _PART)
        inputs = [x[rows], *(layer[rows] for layer in activated)]
        # A copy, since what autograd gives is not ours to change.
        of_output = gradient[rows] if ctx.linear_output else gradient[rows].clone()
        for index in range(len(weights) - 1, lowest - 1, -1):
            if index < len(activated):
                differentiate(of_output, inputs[index + 1])
            _add_weights_gradient(found[1 + 2 * index], inputs[index], of_output)
            of_bias = found[2 + 2 * index]
            if of_bias is not None:
                of_bias.add_(of_output.sum(0))
            if index > lowest:
                of_output = of_output.mm(weights[index].t())
        if found[0] is not None:
            torch.mm(of_output, weights[0].t(), out=found[0][rows])
    return found


def _add_weights_gradient(total: Tensor | None, inputs: Tensor, of_output: Tensor) -> None:
    if total is not None:
        if of_output.shape[1] < _FEW:
            total.add_(of_output.t().mm(inputs).t())
        else:
            total.addmm_(inputs.t(), of_output)


def _differentiable(
    ctx: Any, x: Tensor, parameters: Sequence[Tensor], needed: list[bool], gradient: Tensor
) -> list[Tensor | None]:
    """The same with a graph of its own, for gradients of gradients."""
    activate = {"tanh": torch.tanh, "relu": torch.relu}[ctx.activation]
    y = x
    for index in range(0, len(parameters), 2):
        y = torch.addmm(parameters[index + 1], y, parameters[index])
        if index < len(parameters) - 2 or not ctx.linear_output:
            y = activate(y)
    wanted = [one for one, need in zip((x, *parameters), needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
    return [next(found) if need else None for need in needed]
