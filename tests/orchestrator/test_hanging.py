"""Runs that end although an environment hangs, and checkpoints of runs whose environment fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator import CheckpointsConfig, CollectionConfig, LearningConfig, PolicyConfig, Trainer, TrainerConfig
from orchestrator.checkpoints import find_checkpoint
from orchestrator.environments.vector import EnvironmentFailed
from orchestrator.loop.patience import WorkerHangs
from tests.paths import PROJECT

pytestmark = pytest.mark.anyio
DEADLINE = 90


def config_of(folder: Path, backend: Any, **options: Any) -> TrainerConfig:
    return TrainerConfig(
        environment="tests.orchestrator.training:failing_environment",
        total_agent_steps=10**9,
        run_dir=folder / "run",
        checkpoints=CheckpointsConfig(every=0),
        staleness=0,
        collection=CollectionConfig(environments=2, horizon=32, backend=backend, environment_options=options),
        learning=LearningConfig(update_epochs=1, minibatches=1),
    )


@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_an_environment_that_raises_ends_the_run_with_a_checkpoint_of_the_last_whole_epoch(
    backend: str, tmp_path: Path
) -> None:
    config = config_of(tmp_path, backend, how="raise", fail_at=80)
    with anyio.fail_after(DEADLINE), pytest.raises(EnvironmentFailed, match="the simulator is gone"):
        await Trainer(config).run()
    checkpoint = find_checkpoint(tmp_path / "run")
    assert checkpoint.manifest["epoch"] == 2
    assert checkpoint.manifest["resumable"]


async def test_a_run_whose_environment_hangs_ends_with_a_checkpoint_of_the_last_whole_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hangs = tmp_path / "hangs"
    config = config_of(tmp_path, "process", how="hang", fail_at=80, once=str(hangs))
    with anyio.fail_after(DEADLINE):
        async with Trainer(config).start() as run:
            while not hangs.exists():
                await anyio.sleep(0.02)
            run.stop_now()
            await run.result()
    assert "worker 'collector-0' has not answered 'collect'" in caplog.text
    assert find_checkpoint(tmp_path / "run").manifest["epoch"] == 2


@pytest.mark.parametrize(("what", "worker"), [("hangs_in_acting", "collector-0"), ("hangs_in_learning", "learner")])
async def test_a_run_whose_network_hangs_ends_with_a_checkpoint_of_the_last_whole_epoch(
    what: str, worker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.run.ANSWER_SECONDS", 3.0)
    config = replace(config_of(tmp_path, "process"), policy=PolicyConfig(network=f"tests.orchestrator.hanging:{what}"))
    with anyio.fail_after(DEADLINE):
        async with Trainer(config).start() as run:
            while not (tmp_path / "hangs").exists():
                await anyio.sleep(0.02)
            threading.Thread(target=run.stop_now).start()
            await run.result()
    assert f"worker {worker!r} has not answered" in caplog.text
    assert find_checkpoint(tmp_path / "run").manifest["epoch"] == run.state.epoch >= 1


async def test_stop_now_ends_the_start_of_a_run_whose_environment_hangs_in_its_constructor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.run.ANSWER_SECONDS", 3.0)
    config = replace(config_of(tmp_path, "process"), environment="tests.orchestrator.hanging:hangs_at_the_start")
    with anyio.fail_after(DEADLINE), pytest.raises(WorkerHangs, match="'collector-0' has not answered 'start'"):
        async with Trainer(config).start() as run:
            while not (tmp_path / "hangs").exists():
                await anyio.sleep(0.02)
            run.stop_now()
            await run.result()


# The command.


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "tests.orchestrator.hanging", "train", "--run-dir", "run"]
    settings = ["--total-agent-steps", "1000000000", "--collection.environments", "2", "--collection.horizon", "32"]
    root = str(PROJECT)
    environment = os.environ | {"PYTHONPATH": root}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*program, *settings, *words], cwd=folder, env=environment, **streams)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"there is no {path.name}"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "number", "worker", "saves"),
    [
        (["--policy.network", "tests.orchestrator.hanging:hangs_in_acting"], signal.SIGHUP, "collector-0", True),
        (["--policy.network", "tests.orchestrator.hanging:hangs_in_learning"], signal.SIGTERM, "learner", True),
        (["--environment", "tests.orchestrator.hanging:hangs_at_the_start"], signal.SIGTERM, "collector-0", False),
    ],
)
def test_one_signal_ends_a_run_in_which_something_hangs(
    words: list[str], number: signal.Signals, worker: str, saves: bool, tmp_path: Path
) -> None:
    process = start(tmp_path, *words)
    wait_for(tmp_path / "hangs", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + number, errors
    assert f"worker {worker!r} has not answered" in errors
    assert "Traceback" not in errors
    if saves:
        assert find_checkpoint(tmp_path / "run").manifest["epoch"] >= 1


def test_a_signal_takes_a_checkpoint_of_a_run_that_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.send_signal(signal.SIGUSR1)
    wait_for(tmp_path / "run" / "checkpoints" / "LATEST", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert len(list((tmp_path / "run" / "checkpoints").glob("0*"))) > 1
