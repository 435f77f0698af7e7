"""An offline folder, read back with W&B's own record types."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator import CheckpointsConfig, ConfigurationError, Hook, MetricsConfig, MetricsHook, Trainer
from orchestrator.checkpoints import find_checkpoint
from orchestrator.checks.configuration import check_config
from orchestrator.metrics import RunInfo, Wandb
from state.trainer_state import TrainerState
from tests.orchestrator.metrics.wandb_server import wandb_server
from tests.orchestrator.training import small_config

pytestmark = pytest.mark.slow


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


def proto_records(folder: Path) -> list[Any]:
    """All records of a W&B run that has been finished."""
    from wandb.proto import wandb_internal_pb2

    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while True:
        found: list[Any] = []
        for data in raw_records(path):
            record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(data)
            found.append(record)
        if found and found[-1].HasField("exit"):
            return found
        assert time.monotonic() < deadline, "the file is not finished"
        time.sleep(0.05)  # its writer is another process


def records(folder: Path) -> tuple[Any, list[tuple[int, dict[str, float]]]]:
    """The run's record, and (step, metrics) of each history record."""
    run, history = None, list[tuple[int, dict[str, float]]]()
    for record in proto_records(folder):
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


def folders(run_dir: Path) -> list[Path]:
    return [path for path in run_dir.glob("wandb/*run-*") if path.is_dir()]


def train(run_dir: Path, *, hooks: Sequence[Hook] = (), epochs: int = 4, **metrics: Any) -> TrainerState:
    config = small_config(
        epochs=epochs,
        run_dir=run_dir,
        metrics=MetricsConfig(**metrics),
        checkpoints=CheckpointsConfig(every=2, wandb_project="team/tests"),
    )
    return anyio.run(Trainer(config, hooks=hooks).run)


def artifacts(folder: Path) -> list[str]:
    return [record.artifact.name for record in proto_records(folder) if record.HasField("artifact")]


@pytest.mark.parametrize("given", ["by configuration", "in code", "both"])
def test_metrics_and_checkpoints_of_a_run_are_in_one_wandb_run(tmp_path: Path, given: str) -> None:
    hooks = [] if given == "by configuration" else [MetricsHook([Wandb(project="tests", mode="offline")])]
    configured: dict[str, Any] = {} if given == "in code" else {"wandb": "offline", "wandb_project": "tests"}
    final = train(tmp_path, hooks=hooks, **configured)
    [folder] = folders(tmp_path)
    run, history = records(tmp_path)
    assert (run.entity, run.project) == ("team", "tests")
    assert [step for step, _ in history] == list(range(1, final.epoch + 1))
    assert {item.key for item in run.config.update} >= {"seed", "collection.horizon"}
    assert set(artifacts(tmp_path)) == {f"{run.run_id}-checkpoint"}
    assert final.latest_wandb_uri == folder.as_uri()


def test_checkpoints_alone_have_a_wandb_run_without_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path / "run")
    assert len(folders(tmp_path / "run")) == 1
    run, history = records(tmp_path / "run")
    assert (run.entity, run.project, run.display_name) == ("team", "tests", "run")
    assert not history
    assert artifacts(tmp_path / "run")


def test_two_projects_for_one_run_are_refused_before_the_start(tmp_path: Path) -> None:
    two: dict[str, Any] = {"metrics": MetricsConfig(wandb="offline", wandb_project="b"), "run_dir": tmp_path}
    with pytest.raises(ConfigurationError, match=r"(?s)checkpoints.wandb_project.*a run has one W&B run"):
        check_config(small_config(checkpoints=CheckpointsConfig(wandb_project="a"), **two))
    with pytest.raises(ValueError, match="metrics are to go to the W&B project 'b', checkpoints to 'team/tests'"):
        train(tmp_path, hooks=[MetricsHook([Wandb(project="b", mode="offline")])])


@pytest.mark.parametrize(
    ("what", "backend"),
    [("metrics", "trio"), ("metrics with settings", "asyncio"), ("checkpoints", "asyncio")],
)
def test_pressing_stop_on_the_page_ends_the_run_in_order_with_a_final_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, backend: str
) -> None:
    import wandb
    from wandb.sdk.lib import run_stopping

    async def soon(seconds: float) -> None:  # W&B asks its server every 15 seconds
        await asyncio.sleep(min(seconds, 0.1))

    monkeypatch.setattr(run_stopping, "_SLEEP", soon)
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")  # and tells it metrics as often
    saved = CheckpointsConfig(every=20, wandb_project="me/tests" if what == "checkpoints" else None)
    online = MetricsConfig(jsonl=False, wandb="online" if what == "metrics" else "off", wandb_project="tests")
    config = small_config(epochs=10**6, horizon=256, run_dir=tmp_path / "run", metrics=online, checkpoints=saved)
    own = Wandb(project="tests", settings=wandb.Settings(init_timeout=60))
    hooks = [MetricsHook([own])] if what == "metrics with settings" else []

    async def main() -> TrainerState:
        async with Trainer(config, hooks=hooks).start() as run:
            with anyio.fail_after(120):
                while not server.files:  # it is known there
                    await run.next_state(run.state)
                server.stopped.set()
                final = await run.result()
            assert run.stop_reason == "asked for in Weights & Biases"
            return final

    with wandb_server(monkeypatch) as server:
        if what == "checkpoints":  # without metrics, W&B hears of the button once at the start, and half a minute later
            server.stopped.set()
        final = anyio.run(main, backend=backend)
    assert find_checkpoint(tmp_path / "run").epoch == final.epoch
    assert 0 < final.epoch < 10**6
