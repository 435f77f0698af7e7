"""The script for SLURM, with stand-ins for what SLURM and Ray do in it: how it ends, is requeued, and resumes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.documentation import Block, blocks_of
from tests.paths import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

pytestmark = pytest.mark.slow

STAND_INS = {
    "srun": 'while [ "$1" != ray ]; do shift; done; exec "$@"',
    "ray": '[ "$1" = health-check ] || echo "ray $*" >> calls',
    "scontrol": 'echo "scontrol $*" >> calls',
    # All cells are on this machine.
    "orchestrator": 'echo "$*" >> calls; for one; do shift; [ "$one" = --cluster ] && { skip=yes; continue; };'
    ' [ "$skip" ] && { skip=; continue; }; set -- "$@" "$one"; done; exec "$PYTHON" -m orchestrator "$@"',
}
SETTINGS = """
environment = "CartPole-v1"
total_agent_steps = 10_000_000
[collection]
num_environments = 8
"""


def script() -> str:
    blocks: list[Block] = blocks_of(PROJECT / "docs" / "scaling.md")
    return next(block.text for block in blocks if "#SBATCH" in block.text)


@contextlib.contextmanager
def started(folder: Path) -> Generator[subprocess.Popen[str]]:
    """The job; what is left of it at the end is killed."""
    job = {"SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": "7", "PYTHON": sys.executable}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | job | {"PATH": path, "PYTHONPATH": str(PROJECT)}
    with (folder / "log").open("a") as log:
        job = subprocess.Popen(
            ["bash", "job.sh"], cwd=folder, env=environment, text=True, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield job
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def until(true: Callable[[], object], folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)


def test_a_job_whose_time_is_over_is_saved_requeued_and_resumed(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script())
    (tmp_path / "run.toml").write_text(SETTINGS)
    metrics, calls = tmp_path / "runs" / "wide" / "metrics.jsonl", tmp_path / "calls"

    def lines() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    with started(tmp_path) as job:
        until(lambda: lines() > 2, tmp_path)
        job.send_signal(signal.SIGUSR2)
        assert job.wait(timeout=100) == 143, (tmp_path / "log").read_text()
    assert "scontrol requeue 7" in calls.read_text()
    learned = lines()
    calls.unlink()
    with started(tmp_path) as job:
        until(lambda: lines() > learned + 2, tmp_path)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=100) == 143, (tmp_path / "log").read_text()
    assert "train --resume runs/wide --cells 2 " in calls.read_text()
    assert "scontrol" not in calls.read_text(), "what was cancelled stays so"
