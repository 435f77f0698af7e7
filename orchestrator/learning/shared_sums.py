"""Sums over the cells of one machine, in memory that all of them see: what is to be added is written once, and read
where it is. Pipes say when."""

from __future__ import annotations

import os
import select
import weakref
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from orchestrator.learning.summation import tree
from state.shared_memory import SharedBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_ALIGNED = 64
"""Bytes that the place of a tensor is a multiple of."""
_LONGEST_POLL = 2**31 - 1
"""Milliseconds."""
_HERE, _GONE = b".", b"x"
"""What goes through the pipes. A child that a cell has forked keeps them open when the cell closes them."""


class _File(NamedTuple):
    """A descriptor of a process, and what tells the file behind it from all others."""

    process: int
    descriptor: int
    device: int
    inode: int


class _Offer(NamedTuple):
    """What a cell has made for the others to open."""

    memory: _File
    pipes: dict[int, _File]
    """Through which each of the others tells that it is there."""


class SharedSums:
    """One cell's part. Each has two places, used in turn: the others may still read what it has written last, but no
    more what it had written before, since they have met it once more after that."""

    def __init__(
        self, cell: int, partners: Sequence[int], nbytes: int, timeout: float, gather_values: Callable[[Any], list[Any]]
    ) -> None:
        """Room for tensors of so many bytes. All cells do this together, and tell each other through `gather_values`;
        of the `partners`, each has `timeout` seconds to come to where they meet. Raises OSError in all of the cells
        where one can't open what another has made, as on systems without /proc, or with one of other processes."""
        self._cell = cell
        self.nbytes = nbytes
        self._timeout = timeout
        self._turn = 0
        self._memory: list[Tensor] = []
        self._hears: dict[int, FileIO] = {}
        self._tells: dict[int, FileIO] = {}
        self._open = ExitStack()
        self._closed = weakref.finalize(self, self._open.close)
        problem = ""
        with ExitStack() as offered:
            try:
                offer = self._made(partners, offered)
            except OSError as error:
                offer, problem = None, str(error)
            try:
                offers: list[_Offer | None] = gather_values(offer)
                made = [one for one in offers if one is not None]
                if len(made) == len(offers):
                    self._take(made)
            except OSError as error:
                problem = str(error)
            # Also an answer to those that still open what is here.
            problems = [one for one in gather_values(problem) if one]
        if problems:
            self.close()
            raise OSError(problems[0])

    def _made(self, partners: Sequence[int], offered: ExitStack) -> _Offer:
        own = SharedBuffer.create(2 * self.nbytes, "exchange")
        offered.callback(own.close)
        pipes: dict[int, _File] = {}
        for partner in partners:
            hears, tells = os.pipe()
            self._hears[partner] = self._open.enter_context(FileIO(hears, "r"))
            offered.callback(os.close, tells)  # so that nobody has it but the partner, whose end is noticed then
            pipes[partner] = _file(tells)
        return _Offer(_file(own.fd), pipes)

    def _take(self, offers: Sequence[_Offer]) -> None:
        for offer in offers:
            memory = SharedBuffer(_opened(offer.memory, os.O_RDWR), 2 * self.nbytes)
            self._memory.append(torch.frombuffer(memory.map_shared(), dtype=torch.uint8))
        for partner in self._hears:
            tells = _opened(offers[partner].pipes[self._cell], os.O_WRONLY)
            self._tells[partner] = self._open.enter_context(FileIO(tells, "w"))

    def write(self, tensors: Sequence[Tensor]) -> None:
        """Show the others what is to be added. `add` may follow when all cells have met."""
        self._turn = 1 - self._turn
        for tensor, begin in zip(tensors, _places(tensors), strict=False):
            self._of_cell(self._cell, tensor, begin).copy_(tensor)

    def meet(self, partner: int) -> None:
        """Returns when the partner has called this, too. Raises OSError where it is gone, or takes too long."""
        self._tells[partner].write(_HERE)
        ready = select.poll()
        ready.register(self._hears[partner], select.POLLIN)
        if not ready.poll(min(1000 * self._timeout, _LONGEST_POLL)) or self._hears[partner].read(1) != _HERE:
            raise ConnectionError(f"cell {partner} is gone, or does not come")

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace the tensors, those given to `write`, by the `tree` over all cells."""
        for tensor, begin in zip(tensors, _places(tensors), strict=False):
            of_cells = [self._of_cell(cell, tensor, begin) for cell in range(len(self._memory))]
            tensor.copy_(tree(0, len(of_cells), of_cells.__getitem__, torch.add))

    def close(self) -> None:
        """Those that wait for this cell are told that it is gone. Idempotent."""
        if self._closed.alive:
            for tells in self._tells.values():
                with suppress(OSError):  # the partner is gone, too
                    tells.write(_GONE)
        self._closed()

    def _of_cell(self, cell: int, tensor: Tensor, begin: int) -> Tensor:
        begin += self._turn * self.nbytes
        return self._memory[cell][begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def nbytes_of(tensors: Sequence[Tensor]) -> int:
    """What `SharedSums` of these tensors need."""
    return _places(tensors)[-1]


def _places(tensors: Sequence[Tensor]) -> list[int]:
    """Where each begins, and the end of the last."""
    places = [0]
    for tensor in tensors:
        places.append(places[-1] + -(-tensor.nbytes // _ALIGNED) * _ALIGNED)
    return places


def _file(descriptor: int) -> _File:
    """For others to open. Raises OSError without /proc."""
    about = os.fstat(descriptor)
    # Not getpid: where /proc is that of another PID namespace, processes have other numbers there.
    return _File(int(str(Path("/proc/self").readlink())), descriptor, about.st_dev, about.st_ino)


def _opened(file: _File, how: int) -> int:
    path = Path(f"/proc/{file.process}/fd/{file.descriptor}")
    found = path.stat()  # before anything is opened that may be another program's
    if (found.st_dev, found.st_ino) != (file.device, file.inode):
        raise OSError(f"{path} is a file of another process: /proc is not the same for all cells")
    return os.open(path, how | os.O_CLOEXEC)
