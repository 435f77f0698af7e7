"""A device that is not this machine's processor, without the hardware: what would fail or wait there, does here.

Its tensors compute on the CPU, but cannot be mixed with CPU tensors (as on CUDA, only with scalars), and every time
that the host reads from it is counted. In torch's terms it is a backend of our own (`privateuseone`).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

if TYPE_CHECKING:
    from collections.abc import Generator

# Not where there is CUDA: with another device in the process, torch can compute no gradients there any more.
if not torch.cuda.is_available():
    # When this is imported, so before any test: torch counts the devices at the first backward pass of a process.
    backend_registration._setup_privateuseone_for_python_backend("emulated")
DEVICE = "emulated:0"
_COPIES = ("aten::copy_", "aten::_to_copy", "aten::to")  # the last one in inference mode
_WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal")


class OnDevice(torch.Tensor):
    """A tensor of the device; its content is the CPU tensor `content`."""

    content: torch.Tensor

    @staticmethod
    def __new__(cls, content: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            content.shape,
            strides=content.stride(),
            storage_offset=content.storage_offset(),
            dtype=content.dtype,
            device=DEVICE,
            requires_grad=content.requires_grad,
        )
        made.content = content
        return made

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, value: OnDevice) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.content = value.content

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.content!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, None)


class Emulation(TorchDispatchMode):
    """While entered, tensors can be made on `DEVICE`; `reads` counts what the host has read from it. Where there is
    CUDA, which has tests of its own, the test is skipped."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            pytest.skip("a process that has CUDA can't have the emulated device, too")
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, self)


def run(func: Any, args: Any, kwargs: dict[str, Any], emulation: Emulation | None) -> Any:
    name = func.name().split(".")[0]
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    inside = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    wanted = kwargs.get("device")
    to_device = bool(inside) if wanted is None else torch.device(wanted).type == "emulated"
    if name == "aten::copy_":
        to_device = isinstance(args[0], OnDevice)
    elif inside:
        outside = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim() > 0]
        if outside:
            raise AssertionError(f"{name} mixes tensors of the device with {outside[0].dtype} on the CPU")
    if inside and emulation is not None and (name in _WAITING or (name in _COPIES and not to_device)):
        emulation.reads += 1
    if not inside and not to_device:
        return func(*args, **kwargs)
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    function = _fused_lstm_cell if name == "aten::_thnn_fused_lstm_cell" else func
    result = function(*tree_map(_content, args), **{key: tree_map(_content, value) for key, value in kwargs.items()})
    if not to_device:
        return result
    wrapped = tree_map(_on_device, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if inside else wrapped


def _fused_lstm_cell(
    inputs: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor, input_bias: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What devices have one kernel for, and the CPU has not; the last result is for the gradient alone."""
    gates = inputs + input_bias + hidden + bias
    entry, forget, candidate, exit_ = gates.chunk(4, -1)
    cell = forget.sigmoid() * cell + entry.sigmoid() * candidate.tanh()
    return exit_.sigmoid() * cell.tanh(), cell, gates


def _on_device(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    with torch.inference_mode(value.is_inference()):  # which the view of a tensor from outside is not
        return OnDevice(value)


def _content(value: Any) -> Any:
    return value.content if isinstance(value, OnDevice) else value


class _Generator(torch.Generator):
    """Draws on the CPU what the device is to have drawn."""

    @property
    def device(self) -> torch.device:
        return torch.device(DEVICE)

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls)


@contextmanager
def emulated(monkeypatch: pytest.MonkeyPatch) -> Generator[Emulation]:
    with monkeypatch.context() as patch, Emulation() as emulation:
        patch.setattr(torch, "Generator", _Generator)
        yield emulation
