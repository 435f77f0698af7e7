"""A module's parameters and buffers laid out in one flat buffer: publishing a policy is then a single copy, and the
optimizer sees one long vector instead of many small tensors."""

from __future__ import annotations

import math
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from state.error import OrchestratorError
from state.module_tensors import named_tensors, tensor_places
from state.policy_snapshot import PolicyLayout, TensorSpec


class TensorsChanged(OrchestratorError, RuntimeError):
    """A module's parameters and buffers are no longer those that were laid out; the message names them."""


class ParameterArena:
    """Owns the memory of `module`'s tensors; the module keeps working on views of it.

    Where the module, or other code that holds it, reassigns a tensor (`self.mean = ...`, `parameter.data = ...`), what
    was assigned is copied into the arena by `adopt`, and the module gets its view back. Other names, shapes, dtypes or
    devices raise TensorsChanged there.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self.layout = PolicyLayout.of(module)
        self.memory = torch.zeros(self.layout.nbytes, dtype=torch.uint8, device=device)
        self._module = module
        self._learned = len(self.layout.learned)
        own = named_tensors(module)
        self._views = [self._view_of(self.memory, spec) for spec in self.layout.tensors]
        self._tensors: list[Tensor] = []
        """As they are in the module, in the order of the layout."""
        for spec, view in zip(self.layout.tensors, self._views, strict=True):
            tensor = own[spec.name]
            view.copy_(tensor.detach())
            tensor.data = view
            self._tensors.append(tensor)
        places = tensor_places(module)
        self._places = [places[spec.name] for spec in self.layout.tensors]
        self._pointers = [view.data_ptr() for view in self._views]
        self._gradients: list[Tensor] = []
        self._gradient_views: list[Tensor] = []
        self._flags = [True] * self._learned
        self._active = tuple(self._flags)

    # Gradients, for the learner alone.

    def attach_gradients(self) -> Tensor:
        """Have the gradients of the parameters that are learned add up in one memory, laid out like theirs, which is
        returned; to be called once."""
        memory = torch.zeros_like(self.memory)
        self._gradients = [self.vector(memory, dtype, begin, end) for dtype, begin, end in self.layout.trainable]
        self._gradient_views = [self._view_of(memory, spec) for spec in self.layout.learned]
        for parameter, view in zip(self._tensors, self._gradient_views, strict=False):
            parameter.grad = view
        return memory

    @property
    def gradients(self) -> list[Tensor]:
        """The memory of the gradients, as one vector for each dtype."""
        return self._gradients

    def zero_gradients(self) -> None:
        for gradient in self._gradients:
            gradient.zero_()

    def collect_gradients(self) -> tuple[bool, ...]:
        """Bring the gradients of all that is learned into their memory; tells which of it is to be learned now.

        That is, as in torch's own optimizers, what requires a gradient and has one: parameters can be frozen and
        thawed at any time, and gradients set to None. Raises TensorsChanged as `adopt`.
        """
        if self._unchanged(self._learned) and self._gradients_unchanged():
            return self._active
        gradients = [getattr(table.get(name), "grad", None) for table, name in self._places[: self._learned]]
        self.adopt()
        for gradient, view in zip(gradients, self._gradient_views, strict=True):
            if gradient is not None and gradient is not view:
                view.copy_(gradient)
        self._flags = [parameter.requires_grad for parameter in self._tensors[: self._learned]]
        self._active = tuple(self._flags)
        return tuple(flag and gradient is not None for flag, gradient in zip(self._flags, gradients, strict=True))

    def unchanged(self) -> bool:
        """Whether all tensors and gradients are where they were put, and the same is to be learned as at the last
        `collect_gradients`."""
        return self._unchanged(len(self._places)) and self._gradients_unchanged()

    # What the module has become.

    def adopt(self) -> None:
        """Take over what has been reassigned. Raises TensorsChanged for what has no place in the layout: tensors
        of other names, shapes, dtypes or devices, and parameters that were not learned from the start and now are."""
        own = named_tensors(self._module)
        known = {spec.name for spec in self.layout.tensors}
        problems = [f"{name} is new" for name in own if name not in known]
        for index, spec in enumerate(self.layout.tensors):
            tensor = own.get(spec.name)
            problems += [f"{spec.name} is gone"] if tensor is None else self._problems(index, spec, tensor)
        if problems:
            raise TensorsChanged(
                f"the policy's tensors have changed since the start: {'; '.join(problems)}. Make every parameter and"
                " buffer in the network's constructor, of its final shape, dtype and device, and assign values of the"
                " same kind to it; what is to be learned later must require a gradient at the start, and can be frozen"
                " before the first epoch (in on_new_training_run of a loss)"
            )
        for index, spec in enumerate(self.layout.tensors):
            self._adopt(index, own[spec.name])

    def checksums(self) -> Tensor:
        """`[tensors]` integers, in the order of the layout: sums over the memory of each. Raises TensorsChanged."""
        self.adopt()
        ends = [*(spec.offset for spec in self.layout.tensors[1:]), self.layout.nbytes]
        words = self.memory.view(torch.int32)  # tensors begin at multiples of its size
        parts = [words[spec.offset // 4 : end // 4] for spec, end in zip(self.layout.tensors, ends, strict=True)]
        return torch.stack([part.sum(dtype=torch.int64) for part in parts])

    def write_to(self, memory: Any) -> None:
        """Copy all tensors into a snapshot's memory. Raises TensorsChanged as `adopt`."""
        self.adopt()
        torch.from_numpy(self._bytes(memory)).copy_(self.memory)

    def read_from(self, memory: Any) -> None:
        """Take all tensors from a snapshot's memory, whatever the module has made of them."""
        if not self._unchanged(len(self._places)):
            for (table, name), tensor, view in zip(self._places, self._tensors, self._views, strict=True):
                table[name] = tensor
                tensor.data = view
        self.memory.copy_(torch.from_numpy(self._bytes(memory)))

    def _unchanged(self, count: int) -> bool:
        """Whether the module has the first `count` tensors as they were given to it."""
        tensors = self._tensors[:count]
        there = [table.get(name) for table, name in self._places[:count]]
        return all(map(is_, there, tensors)) and [one.data_ptr() for one in tensors] == self._pointers[:count]

    def _gradients_unchanged(self) -> bool:
        learned = self._tensors[: self._learned]
        return (
            all(map(is_, [parameter.grad for parameter in learned], self._gradient_views))
            and [parameter.requires_grad for parameter in learned] == self._flags
        )

    def _problems(self, index: int, spec: TensorSpec, tensor: Tensor) -> list[str]:
        view = self._views[index]
        if (tensor.shape, tensor.dtype, tensor.device) != (view.shape, view.dtype, view.device):
            before, after = (f"{_name_of(one.dtype)}{list(one.shape)} on {one.device}" for one in (view, tensor))
            return [f"{spec.name} was {before} and is {after}"]
        parameter = isinstance(tensor, nn.Parameter)
        if parameter is not isinstance(self._tensors[index], nn.Parameter):
            return [f"{spec.name} has become a {'parameter' if parameter else 'buffer'}"]
        if parameter and tensor.requires_grad and index >= self._learned:
            return [f"{spec.name} was frozen at the start and now requires a gradient"]
        return []

    def _adopt(self, index: int, tensor: Tensor) -> None:
        view, installed = self._views[index], self._tensors[index]
        if tensor is not installed or tensor.data_ptr() != self._pointers[index]:
            view.copy_(tensor.detach())
            if not isinstance(tensor, nn.Parameter):
                # What was assigned may have a history, or be part of another tensor.
                table, name = self._places[index]
                table[name] = tensor = installed
            tensor.data = view
            self._tensors[index] = tensor
        if index < len(self._gradient_views):
            tensor.grad = self._gradient_views[index]

    # Memory.

    def _bytes(self, memory: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.frombuffer(memory, dtype=np.uint8, count=self.layout.nbytes)

    def _view_of(self, memory: Tensor, spec: TensorSpec) -> Tensor:
        size = math.prod(spec.shape) * _kind(spec.dtype).itemsize
        return self.vector(memory, spec.dtype, spec.offset, spec.offset + size).view(spec.shape)

    @staticmethod
    def vector(memory: Tensor, dtype: str, begin: int, end: int) -> Tensor:
        """The bytes from `begin` to `end` of a memory as numbers."""
        return memory[begin:end].view(_kind(dtype))


def _kind(dtype: str) -> torch.dtype:
    return getattr(torch, dtype)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
