"""What a CUDA graph does, without the hardware: the operations of a function are recorded, and replayed on the same
memory, without Python's control flow, and without what the host reads.

Recording has nothing done: what an operation changes of the memory that was there before is put back at the end, and
what comes about on the way holds nothing of use then.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.policies.capture import CAPTURES, Inputs, tensors_in
from orchestrator.policies.mlp import MLP

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import pytest
    from torch import Tensor, nn

    from orchestrator.policies import Spaces

_NOTHING = 0xFF
"""A byte; four of them are NaN."""


class RecordedOperations:
    """A `Capture` for the CPU, or the emulated device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def warming_up(self) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self, function: Callable[[], object]) -> Callable[[], None]:
        generator = self.generator_state()
        recording = _Recording(self._device)
        try:
            with Inputs(), recording:
                function()
        finally:
            recording.undo()
            self.set_generator_state(generator)
        return recording.replay

    def generator_state(self) -> Tensor:
        return torch.get_rng_state()

    def set_generator_state(self, state: Tensor) -> None:
        torch.set_rng_state(state)


class _Recording(TorchDispatchMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._made: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._device.type != "cpu":
            elsewhere = [one for one in tensors_in((args, kwargs)) if one.device != self._device]
            if elsewhere:
                raise AssertionError(f"{func} takes {elsewhere[0]} on {elsewhere[0].device}")
        schema = func._schema.arguments
        written: list[Tensor] = []
        for index, argument in enumerate(schema):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += tensors_in(args[index] if index < len(args) else kwargs.get(argument.name))
        for tensor in written:
            key = _storage(tensor)
            if key not in self._made and key not in self._before:
                whole = _whole(tensor)
                self._before[key] = whole, whole.clone()
        result = func(*args, **kwargs)
        results = tensors_in(result)
        # What is a view, or was changed in place, is in its place whenever it is replayed.
        inputs = {_storage(one) for one in tensors_in((args, kwargs))}
        new = [one for one in results if _storage(one) not in inputs]
        self._made |= {_storage(one): one for one in new}
        if new or written:
            self._operations.append((func, args, kwargs, [] if written else results))
        return result

    def undo(self) -> None:
        for made in self._made.values():
            _whole(made).fill_(_NOTHING)
        for memory, content in self._before.values():
            memory.copy_(content)

    def replay(self) -> None:
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, results in self._operations:
                for place, content in zip(results, tensors_in(func(*args, **kwargs)), strict=False):
                    place.copy_(content)


def _storage(tensor: Tensor) -> int:
    # Of the content on an emulated device, which has a view and a copy look the same in inference mode.
    return getattr(tensor, "content", tensor).untyped_storage()._cdata


def _whole(tensor: Tensor) -> Tensor:
    """All memory that a tensor is a part of."""
    memory = getattr(tensor, "content", tensor)
    return torch.empty(0, dtype=torch.uint8).set_(memory.untyped_storage())


def record_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `learning.graphs` work on a CPU, in this process."""
    monkeypatch.setitem(CAPTURES, "cpu", RecordedOperations)


def recorded_mlp(spaces: Spaces) -> nn.Module:
    """A network that has it work in each process that makes one."""
    CAPTURES["cpu"] = RecordedOperations
    return MLP(spaces, (8,))
