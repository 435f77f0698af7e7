"""What the learners of several cells tell each other: sums of gradients, and statistics. Over `torch.distributed`."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from orchestrator.learning.shared_sums import SharedSums, nbytes_of
from state.error import OrchestratorError

_T = TypeVar("_T")
LARGE = 256 << 10
"""Bytes from which on sending less matters more than sending less often."""


class CellLost(OrchestratorError, RuntimeError):
    """Another cell's learner has not answered, or is gone."""


class Meeting(NamedTuple):
    """Where learners on several machines find each other."""

    host: str
    port: int


class Exchange:
    """One learner's connection to the others, which all make the same calls in the same order. Blocks.

    There are 2^n cells. On one machine, each reads what all have in memory that they share, and messages only say when.
    On several, each adds first what its neighbor has, then what the neighboring pair has, and so on: the
    result is, bit for bit, the `tree` over all cells, and the same in each of them. So each sends n times what it has
    (recursive doubling), or, of what is large, less than twice that, in 2n messages (recursive halving and doubling;
    Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication operations in MPICH"). With one
    cell, nothing happens.
    """

    def __init__(self, cell: int = 0, cells: int = 1, address: str = "127.0.0.1") -> None:
        self.cell = cell
        self.cells = cells
        self.address = address
        """Where the others reach this one: only others of this machine, unless it says something else."""
        self.seconds = 0.0
        """Spent here since this was last set to 0: waiting for others, and sending."""
        self.sent = 0
        """Bytes, in messages or shared memory, since this was last set to 0."""
        self.warnings: dict[str, str] = {}
        self._group: Any = None
        self._store: Any = None
        self._distances = [2**power for power in range(cells.bit_length() - 1)]
        """From each neighbor that it adds up with, as numbers of cells."""
        self._timeout = 0.0
        self._shares_memory = False
        self._shared: SharedSums | None = None

    def await_others(self, timeout: float) -> Meeting:
        """Where learners on other machines find this one: at a free port of all of this machine's addresses."""
        self._store = _distributed().TCPStore(
            self.address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout)
        )
        return Meeting(self.address, self._store.port)

    def connect(self, meeting: Path | Meeting, timeout: float) -> None:
        """Find the others, of this machine through a file that does not exist yet; each has `timeout` seconds for every
        answer."""
        distributed = _distributed()
        limit = timedelta(seconds=timeout)
        if isinstance(meeting, Path):
            store = distributed.FileStore(str(meeting), self.cells)
        else:
            store = self._store or distributed.TCPStore(*meeting, is_master=False, timeout=limit)
        gloo = distributed.ProcessGroupGloo
        options = gloo._Options()
        # gloo by itself would listen at the address that the machine's name stands for.
        options._devices = [gloo.create_device(hostname=self.address)]
        options._timeout = limit
        # Not the group that there is one of in a process: a loss or a network may have made that.
        self._group = gloo(store, self.cell, self.cells, options)
        self.gather(torch.zeros(1))
        self._store = None  # all are here
        self._timeout, self._shares_memory = timeout, isinstance(meeting, Path)
        if self.cell == 0 and isinstance(meeting, Path):
            meeting.unlink()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up over the cells, in place. Those of one dtype travel together."""
        if self.cells == 1:
            return
        if shared := self._shared_for(tensors):
            self._sum_shared(shared, tensors)
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype is dtype]
            total = self._total(torch.cat([tensor.reshape(-1).cpu() for tensor in alike]))
            for tensor, part in zip(alike, total.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def gather(self, tensor: Tensor) -> Tensor:
        """`[n, ...]` of every cell, one after the other: `[cells * n, ...]`, on the tensor's device."""
        if self.cells == 1 or not tensor.numel():
            return tensor
        own = tensor.cpu().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.cells)]
        began = time.monotonic()
        try:
            self._group.allgather([parts], [own]).wait()
        except RuntimeError as error:
            raise self._lost("the others") from error
        self._count(began, own)
        return torch.cat(parts).to(tensor.device)

    def gather_values(self, value: _T) -> list[_T]:
        """One value of every cell; pickled."""
        if self.cells == 1:
            return [value]
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes: list[int] = self.gather(torch.tensor([len(data)])).tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(data)] = data
        parts = self.gather(padded).view(self.cells, -1)
        return [pickle.loads(part[:size].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def leave(self) -> None:
        """Those that wait for this cell are told that it is gone. Idempotent."""
        self._stop_sharing()
        if self._group is not None:
            self._group.abort()
            self._group = None

    def _shared_for(self, tensors: Sequence[Tensor]) -> SharedSums | None:
        """The memory in which to add up; None where the cells share none."""
        needed = nbytes_of(tensors)
        if self._shares_memory and (self._shared is None or self._shared.nbytes < needed):
            self._stop_sharing()
            partners = [self.cell ^ distance for distance in self._distances]
            try:
                self._shared = SharedSums(self.cell, partners, needed, self._timeout, self.gather_values)
            except OSError as error:
                self._shares_memory = False
                self.warnings["shared memory"] = (
                    f"the cells add up their gradients in messages, not in shared memory, which takes longer: {error}"
                )
        return self._shared

    def _stop_sharing(self) -> None:
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def _sum_shared(self, shared: SharedSums, tensors: Sequence[Tensor]) -> None:
        began = time.monotonic()
        shared.write(tensors)
        for distance in self._distances:  # whoever has met all of these knows that all are here
            partner = self.cell ^ distance
            try:
                shared.meet(partner)
            except OSError as error:
                raise self._lost(f"the learner of cell {partner}") from error
        shared.add(tensors)
        self._count(began, *tensors)

    def _total(self, own: Tensor) -> Tensor:
        if self.cells > 2 and own.nbytes >= LARGE:
            return self._total_by_halves(own)
        others = torch.empty_like(own)
        for distance in self._distances:
            self._swap(own, others, self.cell ^ distance)
            own += others
        return own

    def _total_by_halves(self, own: Tensor) -> Tensor:
        """As `_total`, with the same bits, in twice as many messages that are smaller: neighbors add up a half each,
        then neighboring pairs a half of that, and so on; in the end all tell each other what they have."""
        begin, end, distance = 0, len(own), 1
        of_both: list[tuple[int, int]] = []
        while distance < self.cells:
            of_both.append((begin, end))
            middle = (begin + end) // 2
            mine, theirs = own[begin:middle], own[middle:end]
            if self.cell & distance:
                mine, theirs, begin = theirs, mine, middle
            else:
                end = middle
            others = torch.empty_like(mine)
            self._swap(theirs, others, self.cell ^ distance)
            mine += others
            distance *= 2
        while of_both:
            distance //= 2
            first, last = of_both.pop()
            theirs = own[end:last] if begin == first else own[first:begin]
            self._swap(own[begin:end], theirs, self.cell ^ distance)
            begin, end = first, last
        return own

    def _swap(self, own: Tensor, others: Tensor, partner: int) -> None:
        began = time.monotonic()
        try:
            work: list[Any] = [self._group.send([own], partner, 0), self._group.recv([others], partner, 0)]
            for one in work:
                one.wait()
        except RuntimeError as error:
            raise self._lost(f"the learner of cell {partner}") from error
        self._count(began, own)

    def _count(self, began: float, *sent: Tensor) -> None:
        self.seconds += time.monotonic() - began
        self.sent += sum(tensor.nbytes for tensor in sent)

    def _lost(self, whom: str) -> CellLost:
        self.leave()
        return CellLost(f"the learner of cell {self.cell} waits for {whom}, which does not answer, or is gone")


def _distributed() -> Any:
    from torch import distributed

    return distributed  # whose stubs lack much
