"""How a device records what a function has it do, to do it again without being told each operation: CUDA graphs."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakSet

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from torch import Tensor

READS = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "_unique",
        "_unique2",
        "allclose",
        "argwhere",
        "bincount",
        "equal",
        "is_nonzero",
        "item",
        "masked_select",
        "nonzero",
        "unique_consecutive",
        "unique_dim",
        "unique_dim_consecutive",
    )
)
"""Operations for which the host waits for the device: what it does next may depend on what it reads. Some are seen as
others in inference mode."""
_INDEXING = frozenset(("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"))
_MASKS = (torch.bool, torch.uint8)


class GraphsError(OrchestratorError, ValueError):
    """The device has no graphs; the message names it, and what to set instead."""


class CannotCapture(OrchestratorError, RuntimeError):
    """An operation can't be recorded; the message names it."""


class Capture(Protocol):
    """Records on one device."""

    def warming_up(self) -> AbstractContextManager[object]:
        """While entered, operations are done where they will be recorded, so that torch's libraries set up there what
        they need."""
        ...

    def record(self, function: Callable[[], object]) -> Callable[[], None]:
        """Record what `function` has the device do, without having it done; returns what has it done.

        It is then done with the same tensors, whatever these hold. Raises whatever keeps it from being recorded.
        """
        ...

    def generator_state(self) -> Tensor:
        """Of the generator that networks draw from on the device."""
        ...

    def set_generator_state(self, state: Tensor) -> None: ...


class CudaGraphs:
    """CUDA graphs, as torch documents them ("CUDA semantics", "CUDA graphs"): recorded on a side stream after some
    steps there, from one pool of memory, since they are replayed one after another.

    Other threads may use the GPU meanwhile, such as collectors that act there: only this one is watched for what must
    not be done during a recording (`thread_local`).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        self._replays = WeakSet[_Replay]()

    @contextmanager
    def warming_up(self) -> Generator[None]:
        """As `Capture`."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, function: Callable[[], object]) -> Callable[[], None]:
        """As `Capture`."""
        graph, inputs = torch.cuda.CUDAGraph(), Inputs()
        torch.cuda.synchronize(self._device)
        if not self._replays:  # with the last of its graphs, a pool ends
            self._pool = torch.cuda.graph_pool_handle()
        # Not torch.cuda.graph(), which stays on the side stream when a recording fails.
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                with inputs:
                    function()
            except BaseException:
                with suppress(RuntimeError):  # that the recording has failed
                    graph.capture_end()
                raise
            graph.capture_end()
        replay = _Replay(graph, inputs.tensors)
        self._replays.add(replay)
        return replay

    def generator_state(self) -> Tensor:
        """As `Capture`."""
        return torch.cuda.get_rng_state(self._device)

    def set_generator_state(self, state: Tensor) -> None:
        """As `Capture`."""
        torch.cuda.set_rng_state(state, self._device)


CAPTURES: dict[str, Callable[[torch.device], Capture]] = {"cuda": CudaGraphs}
"""By the type of the device."""


def capture_on(
    device: torch.device, value: bool | Literal["auto"], setting: object, device_setting: object, whose: str
) -> Capture | None:
    """For what a `setting` has recorded whose `value` this is; None where it wants nothing recorded, as with auto on a
    device that has no graphs. `whose` the device is, and by which setting. Raises GraphsError where it has none."""
    if device.type in CAPTURES:
        return CAPTURES[device.type](device) if value else None
    if value is not True:
        return None
    raise GraphsError(
        f"{setting} is true, but {whose} device is {str(device)!r}, which has no graphs; expected a CUDA device:"
        f" set {device_setting} to 'cuda' where torch.cuda.is_available(), or {setting} to auto"
    )


class Inputs(TorchDispatchMode):
    """While entered, remembers the tensors from before that are used, since a graph only knows where they were, and
    raises CannotCapture where the host reads from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        if name in READS:
            raise CannotCapture(f"{name} reads from the device, which a graph can't")
        if name in _INDEXING and any(one.dtype in _MASKS for one in tensors_in(args[1])):
            raise CannotCapture(f"{name} has a boolean mask, of which the host counts what it picks: use torch.where")
        used = tensors_in((args, kwargs))
        if len({tensor.device for tensor in used}) > 1:
            raise CannotCapture(
                f"{name} has tensors of several devices, of which a graph would keep the present numbers: put them on"
                " one device before"
            )
        for tensor in used:
            if _storage(tensor) not in self._known:
                self._known.add(_storage(tensor))
                self.tensors.append(tensor)
        to = (kwargs or {}).get("device")
        if to is not None and used and torch.device(to).type != used[0].device.type:
            raise CannotCapture(f"{name} copies to {to}, which a graph can't")
        result = func(*args, **(kwargs or {}))
        # What comes about on the way is in the graph's own memory.
        self._known.update(map(_storage, tensors_in(result)))
        return result


class _Replay:
    """A graph, and what it needs to be there."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: list[Tensor]) -> None:
        self._graph = graph
        self._inputs = inputs

    def __call__(self) -> None:
        self._graph.replay()


def tensors_in(values: object) -> list[Tensor]:
    """All tensors in arguments or results of an operation."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
