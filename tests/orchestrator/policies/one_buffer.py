"""Modules whose parameters and buffers lie in one piece of memory, as those of the workers do."""

from __future__ import annotations

import torch
from torch import nn


def point_to_views_of_one_buffer(module: nn.Module) -> torch.Tensor:
    tensors = [*module.parameters(), *module.buffers()]
    memory = torch.zeros(sum(tensor.numel() for tensor in tensors))
    begin = 0
    for tensor in tensors:
        view = memory[begin : begin + tensor.numel()].view(tensor.shape)
        view.copy_(tensor.detach())
        tensor.data = view
        begin += tensor.numel()
    return memory
