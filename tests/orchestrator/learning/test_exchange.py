"""Sums over cells are the same bits, however they travel, and whoever waits for a cell that is gone hears of it."""

from __future__ import annotations

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.learning import shared_sums
from orchestrator.learning.exchange import LARGE, CellLost, Exchange, Meeting
from orchestrator.learning.summation import tree

TIMEOUT = 60.0


class Cells:
    """Exchanges that meet in a folder, as on one machine, or (None) as on several."""

    def __init__(self, count: int, folder: Path | None, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self.exchanges = [Exchange(cell, count) for cell in range(count)]
        self._meeting: Path | Meeting
        self._meeting = self.exchanges[0].await_others(timeout) if folder is None else folder / "meeting"

    def run(self, of_cell: Any) -> list[Any]:
        """`of_cell(cell, exchange)` of each, in a thread of its own."""

        def connected(cell: int) -> Any:
            self.exchanges[cell].connect(self._meeting, self._timeout)
            self.exchanges[cell].sent = 0
            return of_cell(cell, self.exchanges[cell])

        with ThreadPoolExecutor(len(self.exchanges)) as threads:
            return list(threads.map(connected, range(len(self.exchanges))))


@pytest.mark.parametrize("machines", ["one", "several", "one without /proc"])
@pytest.mark.parametrize("cells", [2, 4, 8])
@pytest.mark.parametrize("numel", [10, LARGE // 4 + 3])
def test_the_sum_is_that_of_the_tree_in_every_cell(
    cells: int, numel: int, machines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if machines == "one without /proc":
        opened: Any = vars(shared_sums)["_opened"]

        def failing(file: Any, how: int) -> int:
            if threading.current_thread().name.endswith("_1"):  # in one of them
                raise FileNotFoundError("no such file")
            return opened(file, how)

        monkeypatch.setattr(shared_sums, "_opened", failing)
    draw = torch.Generator().manual_seed(1)
    rounds = 3
    values = [[torch.randn(numel, generator=draw) for _ in range(cells)] for _ in range(rounds)]
    expected = [tree(0, cells, lambda cell, of=of: of[cell].clone(), lambda one, other: one + other) for of in values]

    def of_cell(cell: int, exchange: Exchange) -> tuple[list[torch.Tensor], int]:
        exchange.sum([torch.zeros(numel), torch.zeros(2, 3)])  # which arranges what is needed
        exchange.sent = 0
        found: list[torch.Tensor] = []
        for of_round in values:
            own, few = of_round[cell].clone(), torch.full((2, 3), float(cell))
            exchange.sum([own, few])
            assert torch.equal(few, torch.full((2, 3), cells * (cells - 1) / 2))
            found.append(own)
        return found, exchange.sent

    found = Cells(cells, None if machines == "several" else tmp_path).run(of_cell)
    for totals, _ in found:
        assert all(map(torch.equal, totals, expected))
    once = 4 * (numel + 6)
    if machines == "one":
        assert {sent for _, sent in found} == {rounds * once}
    elif once < LARGE or cells == 2:
        assert {sent for _, sent in found} == {rounds * once * (cells.bit_length() - 1)}
    else:
        assert all(abs(sent - rounds * 2 * once * (cells - 1) / cells) < 100 * rounds for _, sent in found)


def test_cells_that_would_open_the_file_of_another_process_send_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where /proc is that of another PID namespace."""
    file: Any = vars(shared_sums)["_file"]

    def of_another(descriptor: int) -> Any:
        made = file(descriptor)
        in_one = threading.current_thread().name.endswith("_1")
        return made._replace(process=process.pid, descriptor=0) if in_one else made

    def of_cell(cell: int, exchange: Exchange) -> tuple[list[float], str]:
        total = torch.ones(3)
        exchange.sum([total])
        return total.tolist(), exchange.warnings["shared memory"]

    monkeypatch.setattr(shared_sums, "_file", of_another)
    with (tmp_path / "other").open("w+b") as other, subprocess.Popen(["sleep", "100"], stdin=other) as process:
        try:
            found = Cells(4, tmp_path).run(of_cell)
        finally:
            process.kill()
    for total, warning in found:
        assert total == [4.0] * 3
        assert f"/proc/{process.pid}/fd/0 is a file of another process" in warning
    assert not (tmp_path / "other").read_bytes()


def test_cells_may_have_more_time_than_the_system_can_wait(tmp_path: Path) -> None:
    def of_cell(cell: int, exchange: Exchange) -> dict[str, str]:
        total = torch.ones(3)
        exchange.sum([total])
        assert total.tolist() == [2.0] * 3
        return exchange.warnings

    assert Cells(2, tmp_path, timeout=1e7).run(of_cell) == [{}, {}]


@pytest.mark.parametrize("machines", ["one", "several"])
def test_whoever_waits_for_a_cell_that_has_left_hears_of_it(machines: str, tmp_path: Path) -> None:
    def of_cell(cell: int, exchange: Exchange) -> str:
        exchange.sum([torch.zeros(5)])
        if cell == 1:
            exchange.leave()
            return "left"
        with pytest.raises(CellLost) as raised:
            exchange.sum([torch.zeros(5)])
        return str(raised.value)

    told, _ = Cells(2, tmp_path if machines == "one" else None).run(of_cell)
    assert told == "the learner of cell 0 waits for the learner of cell 1, which does not answer, or is gone"


def test_nothing_stays_open_of_cells_that_have_left(tmp_path: Path) -> None:
    def pipes() -> int:
        return sum(
            str(one.readlink()).startswith("pipe:") for one in Path("/proc/self/fd").iterdir() if one.is_symlink()
        )

    before = pipes()

    def of_cell(cell: int, exchange: Exchange) -> int:
        exchange.sum([torch.zeros(5)])
        exchange.sum([torch.zeros(50)])  # for which there is no room yet
        exchange.gather(torch.zeros(1))
        return pipes()

    cells = Cells(2, tmp_path)
    assert max(cells.run(of_cell)) > before
    for exchange in cells.exchanges:
        exchange.leave()
    assert pipes() == before
