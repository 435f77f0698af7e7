"""What is written, read back with TensorBoard's own reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.metrics import RunInfo, TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write_epochs(run_dir: Path, *epochs: int, resumed_at: int = 0, run_id: str = "run", **options: Any) -> None:
    sink = TensorBoard(**options)
    sink.open(RunInfo(run_id=run_id, run_dir=run_dir, epoch=resumed_at))
    for epoch in epochs:
        sink.write({"epoch": epoch, "agent_step": 100 * epoch, "loss/x": epoch / 4, "none": None})
    sink.close()


def test_each_metric_is_a_scalar_over_agent_steps(tmp_path: Path) -> None:
    write_epochs(tmp_path, 1, 2, 3)
    read = scalars(tmp_path / "tensorboard")
    assert read == {
        "epoch": [(100, 1.0), (200, 2.0), (300, 3.0)],
        "agent_step": [(100, 100.0), (200, 200.0), (300, 300.0)],
        "loss/x": [(100, 0.25), (200, 0.5), (300, 0.75)],
    }


def test_the_axis_can_be_the_epoch_and_the_folder_another(tmp_path: Path) -> None:
    write_epochs(tmp_path / "run", 1, 2, folder=tmp_path / "elsewhere", axis="epoch")
    assert scalars(tmp_path / "elsewhere")["loss/x"] == [(1, 0.25), (2, 0.5)]
    with pytest.raises(ValueError, match="'seconds', expected one of epoch, agent_step"):
        TensorBoard(axis="seconds")


def test_a_resumed_run_is_shown_without_the_epochs_that_it_makes_again(tmp_path: Path) -> None:
    write_epochs(tmp_path, 1, 2, 3, 4)
    write_epochs(tmp_path, 3, 4, 5, resumed_at=2, run_id="again")
    assert scalars(tmp_path / "tensorboard")["loss/x"] == [
        (100, 0.25),
        (200, 0.5),
        (300, 0.75),
        (400, 1.0),
        (500, 1.25),
    ]


def test_a_kill_loses_no_record_that_was_written(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from orchestrator.metrics import RunInfo, TensorBoard\n"
        "sink = TensorBoard()\n"
        "sink.open(RunInfo(run_id='run', run_dir=Path(sys.argv[1])))\n"
        "for epoch in range(1, 4):\n"
        "    sink.write({'epoch': epoch, 'agent_step': epoch})\n"
        "print('written', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert scalars(tmp_path / "tensorboard")["epoch"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
