"""An offline folder, read back with W&B's own record types."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.metrics import RunInfo, Wandb


@pytest.fixture(autouse=True)
def outside_of_any_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "of-wandb"))


def raw_records(path: Path) -> Iterator[bytes]:
    """The records of an offline file, which is a LevelDB log: blocks of 32 KiB, records in parts that fit into one."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, last part
            yield parts
            parts = b""


def records(folder: Path) -> tuple[Any, list[tuple[int, dict[str, float]]]]:
    """The run's record, and (step, metrics) of each history record."""
    from wandb.proto import wandb_internal_pb2

    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    run, history = None, list[tuple[int, dict[str, float]]]()
    for data in raw_records(path):
        record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(data)
        if record.HasField("run"):
            run = record.run
        if record.HasField("history"):
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            history.append((record.history.step.num, items))
    return run, history


def write_epochs(folder: Path, *epochs: int, run_id: str = "a1b2", resumed_at: int = 0) -> None:
    sink = Wandb(project="tests", mode="offline")
    sink.open(RunInfo(run_id=run_id, run_dir=folder, epoch=resumed_at, settings={"seed": 3, "losses.clip": 0.2}))
    for epoch in epochs:
        sink.write({"epoch": epoch, "loss/x": epoch / 4, "none": None})
    sink.close()


def test_an_offline_run_holds_settings_and_every_epoch(tmp_path: Path) -> None:
    write_epochs(tmp_path, 1, 2, 3)
    run, history = records(tmp_path)
    assert (run.run_id, run.project) == ("a1b2", "tests")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["seed"] == 3
    assert config["losses.clip"] == 0.2
    logged = [(step, {n: v for n, v in items.items() if not n.startswith("_")}) for step, items in history]
    assert logged == [(epoch, {"epoch": epoch, "loss/x": epoch / 4}) for epoch in (1, 2, 3)]


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path) -> None:
    write_epochs(tmp_path / "first", 1, 2)
    (tmp_path / "run" / "wandb").mkdir(parents=True)  # elsewhere, since W&B's folders are named by the second
    shutil.copy(tmp_path / "first" / "wandb" / "run-id.txt", tmp_path / "run" / "wandb")
    write_epochs(tmp_path / "run", 2, 3, run_id="another", resumed_at=1)
    run, history = records(tmp_path / "run")
    assert run.run_id == "a1b2"
    assert [step for step, _ in history] == [2, 3]


def test_a_stop_on_the_page_ends_the_run_in_order(tmp_path: Path) -> None:
    """Pressing the button takes W&B's server; what W&B is told to call then does not."""
    reasons: list[str] = []
    sink = Wandb(project="tests", mode="offline")
    sink.open(RunInfo(run_id="a1b2", run_dir=tmp_path, stop=reasons.append))
    sink.run.settings.stop_fn()
    sink.close()
    assert reasons == ["asked for in Weights & Biases"]
