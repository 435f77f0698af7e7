"""The parts of an epoch's experience whose gradients are computed alone, so that what is learned does not depend on how
many cells share them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from losses import LossStatistics

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.learning.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Share:
    """Which of the shards a cell learns from: `count` from `first` on, of so many."""

    first: int
    count: int
    shards: int

    @classmethod
    def of(cls, cell: int, cells: int, shards: int) -> Share:
        """Each of the cells has equally many."""
        return cls(cell * (shards // cells), shards // cells, shards)

    def cut(self, arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of each of its shards, of the arrays `[segments, ...]` of all."""
        rows = {name: np.split(array, self.shards) for name, array in arrays.items()}
        return [
            {name: parts[shard] for name, parts in rows.items()} for shard in range(self.first, self.first + self.count)
        ]

    def generators(self, seed: int, epoch: int, device: torch.device) -> list[torch.Generator]:
        """What the minibatches of an epoch are drawn with, in each of its shards."""
        return [
            torch.Generator(device).manual_seed(_derived_seed(seed, epoch, shard))
            for shard in range(self.first, self.first + self.count)
        ]


class ShardStatistics(LossStatistics):
    """Keeps apart what is tracked while a shard is `selected`."""

    def __init__(self, device: torch.device, shards: int) -> None:
        super().__init__(device)
        self._shards = [LossStatistics(device) for _ in range(shards)]
        self._selected: LossStatistics | None = None

    def select(self, shard: int | None) -> None:
        """What is added next is of this shard (of those here, from 0); None: of none, but of the whole epoch."""
        self._selected = None if shard is None else self._shards[shard]

    def add(self, name: str, value: Tensor | float) -> None:
        if self._selected is None:
            super().add(name, value)
        else:
            self._selected.add(name, value)

    def read_shards(self) -> list[dict[str, float]]:
        """As `read`, of each shard."""
        return [statistics.read() for statistics in self._shards]


def read_tracked(statistics: LossStatistics, exchange: Exchange) -> dict[str, float]:
    """Means of what was tracked since the last time, in all cells; what is of the whole epoch, is the first cell's."""
    of_epoch = statistics.read()
    if not isinstance(statistics, ShardStatistics):
        return of_epoch
    told = exchange.gather_values((of_epoch, statistics.read_shards()))
    return told[0][0] | mean_over_shards(of_shards for _, of_shards in told)


def mean_over_shards(statistics: Iterable[Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """Of each name, over the shards that have it; they are given by cell."""
    values: dict[str, list[float]] = {}
    for of_cell in statistics:
        for of_shard in of_cell:
            for name, value in of_shard.items():
                values.setdefault(name, []).append(value)
    return {name: sum(of_name) / len(of_name) for name, of_name in values.items()}


def _derived_seed(seed: int, epoch: int, shard: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, shard)).generate_state(1, np.uint64)[0] >> 1)
