"""Sums over cells are the same bits, however many messages they travel in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from orchestrator.learning.exchange import LARGE, Exchange, tree


@pytest.mark.parametrize("cells", [2, 4, 8])
@pytest.mark.parametrize("numel", [10, LARGE // 4 + 3])
def test_the_sum_is_that_of_the_tree_in_every_cell(cells: int, numel: int, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    values = [torch.randn(numel, generator=draw) for _ in range(cells)]
    expected = tree(0, cells, lambda cell: values[cell].clone(), lambda one, other: one + other)

    def of_cell(cell: int) -> tuple[torch.Tensor, int]:
        exchange = Exchange(cell, cells)
        exchange.connect(tmp_path / "meeting", timeout=60.0)
        exchange.sent = 0
        own = values[cell].clone()
        exchange.sum([own])
        return own, exchange.sent

    with ThreadPoolExecutor(cells) as threads:
        found = list(threads.map(of_cell, range(cells)))
    assert all(torch.equal(total, expected) for total, _ in found)
    once = 4 * numel
    if once < LARGE or cells == 2:
        assert {sent for _, sent in found} == {once * (cells.bit_length() - 1)}
    else:
        assert all(abs(sent - 2 * once * (cells - 1) / cells) < 100 for _, sent in found)
