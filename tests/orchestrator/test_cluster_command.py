"""The command with cells on a Ray cluster, which here is several raylets on one machine: signals, programs side by
side, and what is left when the command is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.machines import Machines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """One beside the head, with room for one cell."""
    made = Machines(1)
    yield made
    made.close()


def command(machines: Machines, folder: Path, *options: object) -> list[str]:
    small = ["--collection.collectors", "2", "--collection.num-environments", "8", "--checkpoints.every", "1"]
    begin = [sys.executable, "-m", "orchestrator", "train", "--cells", "2", "--cluster", machines.address]
    return [*begin, *small, "--run-dir", str(folder), *map(str, options)]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def checkpoints(folder: Path) -> list[str]:
    return sorted(manifest.parent.name for manifest in folder.glob("checkpoints/[0-9]*/manifest.json"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_order_and_leaves_nothing_anywhere(
    number: signal.Signals, machines: Machines, tmp_path: Path
) -> None:
    """Ray's own handler for SIGTERM, which prints a stack trace, is not there any more."""
    folder = tmp_path / "run"
    with started(command(machines, folder)) as process:
        try:
            until(lambda: checkpoints(folder))
            process.send_signal(number)
            said, _ = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert f"{number.name}: stopping after this epoch" in said
    assert "go on with" in said
    assert f"{number.name} received" not in said
    anyio.run(machines.assert_nothing_left)


def test_a_run_whose_command_was_killed_leaves_nothing_there_and_resumes_from_its_newest_checkpoint(
    machines: Machines, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with started(command(machines, folder)) as process:
        try:
            until(lambda: len(checkpoints(folder)) > 2)
            assert machines.processes()
        finally:
            process.kill()
    anyio.run(machines.assert_nothing_left)
    newest = int(checkpoints(folder)[-1])
    resume = [sys.executable, "-m", "orchestrator", "train", "--resume", str(folder)]
    steps = ["--total-agent-steps", str((newest + 2) * 8 * 32)]
    subprocess.run([*resume, *steps], timeout=200, check=True)
    epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, epochs[-1] + 1))
    assert epochs[-1] > newest
    anyio.run(machines.assert_nothing_left)


def test_a_program_waits_for_the_machine_that_another_has(machines: Machines, tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    both = {folder: started(command(machines, folder)) for folder in (first, second)}
    try:
        until(lambda: checkpoints(first) or checkpoints(second))
        has, waits = (first, second) if checkpoints(first) else (second, first)
        assert not checkpoints(waits)
        both[has].terminate()
        both[has].communicate(timeout=100)
        until(lambda: checkpoints(waits))
        both[waits].terminate()
        both[waits].communicate(timeout=100)
        assert {process.returncode for process in both.values()} == {128 + signal.SIGTERM}
    finally:
        for process in both.values():
            process.kill()
            process.communicate()
    anyio.run(machines.assert_nothing_left)


def test_a_signal_ends_a_run_that_waits_for_a_machine(machines: Machines, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(command(machines, folder, "--collection.collectors", 8)) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "waits for a machine" in line:
                    assert "with 5 CPU free, for up to cell_timeout = 600 s; in all, they have 2 CPU; none" in line
                    break
            process.terminate()
            said, _ = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "has no machine for cell 1 yet; the run ends without it\n" in said
    assert "has not ended" not in said
    assert not folder.exists()
    anyio.run(machines.assert_nothing_left)
