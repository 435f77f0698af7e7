"""A module's parameters and buffers laid out in one flat buffer: publishing a policy is then a single copy, and the
optimizer sees one long vector instead of many small tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from state.policy_snapshot import PolicyLayout


class ParameterArena:
    """Owns the memory of `module`'s tensors; the module keeps working on views of it.

    Buffers must be updated in place from here on (`copy_`, `add_`): a re-assigned buffer would leave the arena.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self.layout = PolicyLayout.of(module)
        self.memory = torch.zeros(self.layout.nbytes, dtype=torch.uint8, device=device)
        own = dict([*module.named_parameters(), *module.named_buffers()])
        with torch.no_grad():
            for spec in self.layout.tensors:
                tensor = own[spec.name]
                view = self._view(self.memory, spec.dtype, spec.offset, math.prod(spec.shape)).view(spec.shape)
                view.copy_(tensor)
                tensor.data = view
        self._module = module
        self._gradients: list[torch.Tensor] = []

    def trainable(self) -> list[nn.Parameter]:
        """The trainable parameters as one flat parameter per dtype, whose `grad` the module's gradients add up in.

        To be called once, by the learner. Clear the gradients with `zero_gradients`, never by setting None.
        """
        flat: list[nn.Parameter] = []
        gradient_memory = torch.zeros_like(self.memory)
        own = dict(self._module.named_parameters())
        for dtype, begin, end in self.layout.trainable:
            count = (end - begin) // torch.empty(0, dtype=getattr(torch, dtype)).element_size()
            parameter = nn.Parameter(self._view(self.memory, dtype, begin, count))
            parameter.grad = self._view(gradient_memory, dtype, begin, count)
            self._gradients.append(parameter.grad)
            flat.append(parameter)
        for spec in self.layout.tensors:
            parameter = own.get(spec.name)
            if parameter is not None and parameter.requires_grad:
                view = self._view(gradient_memory, spec.dtype, spec.offset, math.prod(spec.shape))
                parameter.grad = view.view(spec.shape)
        return flat

    def zero_gradients(self) -> None:
        for gradient in self._gradients:
            gradient.zero_()

    def write_to(self, memory: Any) -> None:
        """Copy all tensors into a snapshot's memory."""
        torch.from_numpy(self._bytes(memory)).copy_(self.memory)

    def read_from(self, memory: Any) -> None:
        """Take all tensors from a snapshot's memory."""
        self.memory.copy_(torch.from_numpy(self._bytes(memory)))

    def _bytes(self, memory: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.frombuffer(memory, dtype=np.uint8, count=self.layout.nbytes)

    @staticmethod
    def _view(memory: torch.Tensor, dtype: str, offset: int, count: int) -> torch.Tensor:
        kind: torch.dtype = getattr(torch, dtype)
        size = torch.empty(0, dtype=kind).element_size()
        return memory[offset : offset + count * size].view(kind)
