"""trackio itself, which writes into a local folder and is read back by its own API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trackio

from orchestrator import ConfigurationError, MetricsConfig, MetricsHook, Trackio, Trainer
from orchestrator.checks.configuration import check_config
from tests.orchestrator.training import small_config
from tests.paths import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow
DEADLINE = 200.0
PROGRAM = """
import json

import anyio
import trackio
from trackio.sqlite_storage import SQLiteStorage

from orchestrator import CollectionConfig, MetricsConfig, Trainer, TrainerConfig


def config(folder: str, steps: int) -> TrainerConfig:
    collection = CollectionConfig(num_environments=4, horizon=32, backend="inline")
    metrics = MetricsConfig(trackio=True, trackio_project="maze")
    return TrainerConfig(total_agent_steps=steps, run_dir=folder, collection=collection, metrics=metrics)


anyio.run(Trainer(config("first", 500)).run)
anyio.run(Trainer(config("first", 900), resume="first").run)
anyio.run(Trainer(config("other/first", 200)).run)
runs = trackio.Api().runs("maze")
history = {run.name: SQLiteStorage.get_logs("maze", run.name, run_id=run.id) for run in runs}
print(json.dumps([{"name": run.name, "config": run.config, "history": history[run.name]} for run in runs]))
"""


def test_every_epoch_of_a_run_and_of_its_resumption_is_in_one_run_of_trackio(tmp_path: Path) -> None:
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "of-trackio"), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    runs: dict[str, Any] = {run["name"]: run for run in json.loads(result.stdout.splitlines()[-1])}
    assert len(runs) == 2
    assert all(name.startswith("first-") for name in runs), "runs of one name in two folders are two"
    run = runs[(tmp_path / "first" / "trackio-run.txt").read_text().strip()]
    assert run["config"]["environment"] == "CartPole-v1"
    history = {row["step"]: row for row in run["history"]}
    assert len(history) == len(run["history"]) == len(records)
    for record in records:
        for name, value in record.items():
            if value is None:
                assert history[record["epoch"]].get(name) is None
            else:
                assert history[record["epoch"]][name] == pytest.approx(value), name


@pytest.mark.anyio
async def test_a_trackio_that_hangs_does_not_hold_up_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, seen, taken = threading.Event(), list[int](), list[int]()

    class Hanging:
        def log(self, metrics: dict[str, float], step: int) -> None:
            seen.append(step)
            free.wait(DEADLINE)

        def finish(self) -> None:
            return

    monkeypatch.setattr(trackio, "init", lambda *_, **__: Hanging())
    trainer = Trainer(small_config(epochs=6), hooks=[MetricsHook(sinks=[Trackio(project="maze")])])

    @trainer.on_training_end
    async def let_go(state: TrainerState) -> None:
        taken.extend(seen)
        free.set()

    with anyio.fail_after(DEADLINE):
        final = await trainer.run()
    assert final.epoch == 6
    assert taken == [1], "only the first record, when the training had ended"


def test_without_the_package_the_setting_is_refused_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"async-rl-orchestrator\[trackio\]"):
        check_config(small_config(metrics=MetricsConfig(trackio=True)))
