from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.metrics import JsonLines, RunInfo, truncate_records


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_in(folder: Path, epoch: int = 0) -> RunInfo:
    return RunInfo(run_id="run", run_dir=folder, epoch=epoch)


def write_epochs(folder: Path, *epochs: int, resumed_at: int = 0) -> Path:
    sink = JsonLines()
    sink.open(run_in(folder, resumed_at))
    for epoch in epochs:
        sink.write({"epoch": epoch, "value": None if epoch == 2 else epoch / 3})
    sink.close()
    return folder / "metrics.jsonl"


def test_a_line_is_an_epoch(tmp_path: Path) -> None:
    path = write_epochs(tmp_path / "run", 1, 2, 3)
    assert written(path) == [
        {"epoch": 1, "value": 1 / 3},
        {"epoch": 2, "value": None},
        {"epoch": 3, "value": 1.0},
    ]


def test_a_resumed_run_has_each_epoch_once(tmp_path: Path) -> None:
    write_epochs(tmp_path, 1, 2, 3, 4, 5)
    path = write_epochs(tmp_path, 4, 5, 6, resumed_at=3)
    assert [line["epoch"] for line in written(path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "rest", [b'{"epoch": 3, "va', b'{"epoch": 3}', b"\x00\x00\x00\n", b"[3]\n", b"3\n", b'{"a": 1}\n']
)
def test_what_is_no_whole_record_goes_to_a_file_beside_it(rest: bytes, tmp_path: Path) -> None:
    path = write_epochs(tmp_path, 1, 2)
    before = path.read_bytes()
    path.write_bytes(before + rest)
    assert truncate_records(path, 10) == 1
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["metrics.jsonl", "metrics.jsonl.odd"]
    assert (tmp_path / "metrics.jsonl.odd").read_bytes() == rest.removesuffix(b"\n") + b"\n"


def test_where_nothing_is_to_be_dropped_the_file_stays_as_it_is(tmp_path: Path) -> None:
    path = write_epochs(tmp_path, 1, 2)
    before = path.stat()
    assert truncate_records(path, 2) == 0
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert truncate_records(tmp_path / "none.jsonl", 2) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_without_a_folder_a_path_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give JsonLines the path"):
        JsonLines().open(RunInfo(run_id="run"))
    sink = JsonLines(tmp_path / "deep" / "own.jsonl")
    sink.open(RunInfo(run_id="run"))
    sink.write({"epoch": 1})
    sink.close()
    assert written(tmp_path / "deep" / "own.jsonl") == [{"epoch": 1}]


def test_a_full_disk_leaves_no_half_line_and_the_next_record_fits_again(tmp_path: Path) -> None:
    """The limit on the size of files stands for the end of the disk: the write that crosses it is cut short."""
    script = tmp_path / "writer.py"
    script.write_text(
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.metrics import JsonLines, RunInfo\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "sink = JsonLines()\n"
        "sink.open(RunInfo(run_id='run', run_dir=Path(sys.argv[1])))\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "sink.write({'epoch': 1})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))\n"
        "try:\n"
        "    sink.write({'epoch': 2, 'long': 10**60})\n"
        "except OSError as error:\n"
        "    print(type(error).__name__, error.errno)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "sink.write({'epoch': 3})\n"
        "sink.close()\n"
    )
    result = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert result.stdout.startswith("OSError"), result.stderr
    assert written(tmp_path / "metrics.jsonl") == [{"epoch": 1}, {"epoch": 3}]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 40


def test_a_kill_while_a_file_is_truncated_leaves_it_as_before_or_as_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = "".join(json.dumps({"epoch": epoch, "text": "x" * 100}) + "\n" for epoch in range(1, 20_001))
    after = "".join(json.dumps({"epoch": epoch, "text": "x" * 100}) + "\n" for epoch in range(1, 10_001))
    script = tmp_path / "truncate.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from orchestrator.metrics.jsonl import truncate_records\n"
        "print('begin', flush=True)\n"
        "truncate_records(Path(sys.argv[1]), 10_000)\n"
    )
    for delay in (0.0, 0.01, 0.03):
        path.write_text(before)
        process = subprocess.Popen([sys.executable, script, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert path.read_text() in (before, after)
        assert truncate_records(path, 10_000) in (0, 10_000)
        assert path.read_text() == after
