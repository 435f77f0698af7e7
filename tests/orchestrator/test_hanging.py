"""Runs that end although an environment hangs, and checkpoints of runs whose environment fails."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator import (
    CheckpointsConfig,
    CollectionConfig,
    HookFailed,
    LearningConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
)
from orchestrator.checkpoints import find_checkpoint
from orchestrator.environments.vector import EnvironmentFailed
from orchestrator.hooks.included.heartbeat import Heartbeat
from orchestrator.loop.patience import WorkerHangs
from tests.orchestrator.training import small_config

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
DEADLINE = 90


def config_of(folder: Path, backend: Any, **options: Any) -> TrainerConfig:
    return TrainerConfig(
        environment="tests.orchestrator.training:failing_environment",
        total_agent_steps=10**9,
        run_dir=folder / "run",
        checkpoints=CheckpointsConfig(every=0),
        staleness=0,
        collection=CollectionConfig(num_environments=2, horizon=32, backend=backend, environment_options=options),
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
    monkeypatch.setattr("orchestrator.loop.run_parts.ANSWER_SECONDS", 3.0)
    config = replace(config_of(tmp_path, "process"), policy=PolicyConfig(network=f"tests.orchestrator.hanging:{what}"))
    with anyio.fail_after(DEADLINE):
        async with Trainer(config).start() as run:
            while not (tmp_path / "hangs").exists():
                await anyio.sleep(0.02)
            threading.Thread(target=run.stop_now).start()
            await run.result()
    assert f"worker {worker!r} has not answered" in caplog.text
    assert find_checkpoint(tmp_path / "run").manifest["epoch"] == run.state.epoch >= 1


def times_slow(folder: Path) -> int:
    return len(list(folder.glob("slow-*")))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("what", ["slow_network", "slow_environment"])
async def test_a_worker_that_has_always_been_slow_is_not_taken_for_one_that_hangs(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.loop.run_parts.ANSWER_SECONDS", 1.0)
    config = replace(config_of(tmp_path, "process"), staleness=1)
    if what == "slow_network":
        config = replace(config, policy=PolicyConfig(network="tests.orchestrator.hanging:slow_network"))
    else:
        collection = replace(config.collection, num_environments=1, horizon=2)
        config = replace(config, environment="tests.orchestrator.hanging:slow_environment", collection=collection)
    with anyio.fail_after(DEADLINE):
        async with Trainer(config).start() as run:
            await run.next_state(None)
            seen = times_slow(tmp_path)
            while times_slow(tmp_path) == seen:  # until it is at work again
                await anyio.sleep(0.02)
            run.stop_now()
            await run.result()
    assert "has not answered" not in caplog.text
    assert find_checkpoint(tmp_path / "run").manifest["resumable"]


async def test_stop_now_ends_the_start_of_a_run_whose_environment_hangs_in_its_constructor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.loop.run_parts.ANSWER_SECONDS", 3.0)
    config = replace(config_of(tmp_path, "process"), environment="tests.orchestrator.hanging:hangs_at_the_start")
    with anyio.fail_after(DEADLINE), pytest.raises(WorkerHangs, match="'collector-0' has not answered 'start'"):
        async with Trainer(config).start() as run:
            while not (tmp_path / "hangs").exists():
                await anyio.sleep(0.02)
            run.stop_now()
            await run.result()


class Stuck:
    """A file system that hangs."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, *_: object, **__: object) -> Any:
        self.entered.set()
        self.go_on.wait()
        raise OSError("too late")


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
@pytest.mark.parametrize("what", ["checkpoints.CheckpointFolder.commit", "hooks.included.heartbeat.Heartbeat._write"])
async def test_a_run_ends_although_the_file_system_hangs(
    what: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck()
    monkeypatch.setattr(f"orchestrator.{what}", stuck)
    monkeypatch.setattr("orchestrator.workers.event_loop.ABANDON_SECONDS", 0.1)
    config = small_config(epochs=10**6, run_dir=tmp_path / "run", checkpoints=CheckpointsConfig(every=1))
    hooks = [Heartbeat(tmp_path / "beat", 0.01)]
    try:
        with anyio.fail_after(DEADLINE), suppress(HookFailed), anyio.CancelScope() as scope:
            async with Trainer(config, hooks=hooks).start() as run:
                while not stuck.entered.is_set():
                    await anyio.sleep(0.01)
                if how == "cancelled":
                    scope.cancel()
                run.stop()
                run.limit_drain(0.1)
    finally:
        stuck.go_on.set()
    assert "hangs in a thread" in caplog.text
