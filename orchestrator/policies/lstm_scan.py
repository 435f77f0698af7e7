"""The recurrence of an LSTM over time with the state set to 0 anywhere on the way, and its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


def lstm_scan(
    projected: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run an LSTM (Hochreiter and Schmidhuber 1997, with forget gates) over `time` steps.

    `projected` `[time, batch, 4 * size]` is each step's input times the input weights, plus the biases; gates are in
    `nn.LSTM`'s order (input, forget, cell, output). `hidden` and `cell` `[batch, size]` are the state before the
    first step; `weight` is `[4 * size, size]`. `keep` `[time, batch, 1]` is 0 where the state is forgotten before the
    step, 1 elsewhere. Returns the hidden states of all steps `[time, batch, size]` and the last hidden and cell.

    The cost does not depend on where the resets are, and nothing is read back from the device.
    """
    outputs, cell = _Scan.apply(projected, hidden, cell, weight, keep)
    return outputs, outputs[-1], cell


class _Scan(torch.autograd.Function):
    """As one node of the graph instead of some 15 per step; in the backward pass, what needs no order is done at once.

    Written out, with elementwise products, step t is:
        h', c' = keep * h, keep * c
        i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of (projected[t] + h' @ weight^T)
        c = f * c' + i * g
        h = o * tanh(c)
    """

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        time, batch, size = *projected.shape[:2], hidden.shape[1]
        gates = projected.new_empty(projected.shape)
        kept_hidden, kept_cells, squashed, outputs = projected.new_empty(4, time, batch, size).unbind(0)
        i, f, g, o = (part.unbind(0) for part in gates.chunk(4, -1))
        transposed = weight.t().contiguous()
        for sums, k, gate, i_f, i_t, f_t, g_t, o_t, h_kept, c_kept, c_tanh, h in zip(
            projected.unbind(0),
            keep.unbind(0),
            gates.unbind(0),
            gates[..., : 2 * size].unbind(0),
            i,
            f,
            g,
            o,
            kept_hidden.unbind(0),
            kept_cells.unbind(0),
            squashed.unbind(0),
            outputs.unbind(0),
            strict=True,
        ):
            torch.mul(hidden, k, out=h_kept)
            torch.mul(cell, k, out=c_kept)
            torch.addmm(sums, h_kept, transposed, out=gate)
            i_f.sigmoid_()
            g_t.tanh_()
            o_t.sigmoid_()
            cell = torch.mul(f_t, c_kept).addcmul_(i_t, g_t)
            torch.tanh(cell, out=c_tanh)
            torch.mul(o_t, c_tanh, out=h)
            hidden = h
        ctx.save_for_backward(gates, kept_hidden, kept_cells, squashed, weight, keep)
        return outputs, cell

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        d_outputs, d_last_cell = gradients
        gates, kept_hidden, kept_cells, squashed, weight, keep = ctx.saved_tensors
        size = squashed.shape[-1]
        i, f, g, o = gates.chunk(4, -1)

        # First the derivatives of each step's c by the sums that i, f and g are made of, and of its h by o's.
        d_sums = torch.empty_like(gates)
        by_i, by_f, by_g, by_o = d_sums.chunk(4, -1)
        _sigmoid_backward(g, i, grad_input=by_i)
        _sigmoid_backward(kept_cells, f, grad_input=by_f)
        _tanh_backward(i, g, grad_input=by_g)
        _sigmoid_backward(squashed, o, grad_input=by_o)
        h_by_c = torch.empty_like(squashed)
        _tanh_backward(o, squashed, grad_input=h_by_c)
        c_by_previous = f * keep

        # Then, from the last step to the first, they become the loss's derivatives.
        d_hidden = torch.zeros_like(d_last_cell)
        d_cell = d_last_cell.clone()
        next_keep = torch.zeros_like(keep[0])
        by_ifg = d_sums[..., : 3 * size].unflatten(-1, (3, size))
        for d_output, k, h_c, c_c, d_sum, d_ifg, d_o in zip(
            reversed(d_outputs.unbind(0)),
            reversed(keep.unbind(0)),
            reversed(h_by_c.unbind(0)),
            reversed(c_by_previous.unbind(0)),
            reversed(d_sums.unbind(0)),
            reversed(by_ifg.unbind(0)),
            reversed(by_o.unbind(0)),
            strict=True,
        ):
            d_h = torch.addcmul(d_output, d_hidden, next_keep)
            d_cell.addcmul_(d_h, h_c)
            d_o.mul_(d_h)
            d_ifg.mul_(d_cell.unsqueeze(1))
            d_cell.mul_(c_c)
            d_hidden = torch.mm(d_sum, weight)
            next_keep = k
        d_weight = d_sums.flatten(0, 1).t() @ kept_hidden.flatten(0, 1)
        return d_sums, d_hidden * next_keep, d_cell, d_weight, None
