"""An offline folder, read back record by record with W&B's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sinks import RunInfo, Wandb


@pytest.fixture(autouse=True)
def outside_of_any_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "of-wandb"))


def records(folder: Path) -> tuple[Any, list[tuple[int, dict[str, float]]]]:
    """The run's record, and (step, metrics) of each history record."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal import datastore

    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    store = datastore.DataStore()
    store.open_for_scan(str(path))
    run, history = None, list[tuple[int, dict[str, float]]]()
    while (data := store.scan_data()) is not None:
        record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(data)
        if record.HasField("run"):
            run = record.run
        if record.HasField("history"):
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
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
    write_epochs(tmp_path / "run", 1, 2)
    first = next((tmp_path / "run").glob("wandb/offline-run-*"))
    first.rename(tmp_path / "first")
    write_epochs(tmp_path / "run", 2, 3, run_id="another", resumed_at=1)
    run, history = records(tmp_path / "run")
    assert run.run_id == "a1b2"
    assert [step for step, _ in history] == [2, 3]
