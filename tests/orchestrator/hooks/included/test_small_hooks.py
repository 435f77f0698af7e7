"""Heartbeat, requests to stop, and what the system does."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import psutil
import pytest

from orchestrator import Heartbeat, MetricsConfig, StopFile, StopRequest, Trainer
from orchestrator.hooks.included.system_usage import SystemUsage
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import FakeRun, HookEngine, publish_epochs, running, until
from tests.orchestrator.training import small_config


def beat(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"epoch": None}


@pytest.mark.anyio
async def test_a_heartbeat_says_where_the_run_is_and_that_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "heartbeat.json"
    began = time.time()
    async with running(Heartbeat(path, 0.01)) as engine:
        await publish_epochs(engine, 3)
        await until(lambda: beat(path)["epoch"] == 3)
        first = beat(path)
        assert (first["agent_step"], first["pid"], first["ended"]) == (300, os.getpid(), False)
        assert began <= first["epoch_time"] <= first["time"]
        await until(lambda: beat(path)["time"] > first["time"])
        assert beat(path)["epoch_time"] == first["epoch_time"], "no epoch has ended since, which is how a hang looks"
        await engine.publish("on_training_end", TrainerState(epoch=3))
        await engine.drain(10)
        assert beat(path)["ended"]
    assert beat(path)["ended"], "a beat on its way does not undo it"
    assert [entry.name for entry in path.parent.iterdir()] == ["heartbeat.json"]


@pytest.mark.anyio
async def test_a_heartbeat_that_cannot_be_written_is_reported_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "folder"
    blocked.touch()
    path = blocked / "heartbeat.json"
    async with running(Heartbeat(path, 0.005)) as engine:
        await until(lambda: "could not be written" in caplog.text)
        await anyio.sleep(0.05)
        blocked.unlink()
        await publish_epochs(engine, 1)
        await until(lambda: beat(path)["epoch"] == 1)
    assert caplog.text.count("could not be written") == 1


@pytest.mark.anyio
async def test_a_configured_heartbeat_is_in_the_runs_folder(tmp_path: Path) -> None:
    config = small_config(epochs=3, run_dir=tmp_path / "run", metrics=MetricsConfig(heartbeat=0.01))
    final = await Trainer(config).run()
    last = beat(tmp_path / "run" / "heartbeat.json")
    assert (last["ended"], last["epoch"]) == (True, final.epoch)


@pytest.mark.anyio
async def test_a_file_ends_a_run_in_order(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    async with Trainer(small_config(epochs=10**6), hooks=[StopRequest(StopFile(stop), 0.01)]).start() as run:
        await run.next_state(None)
        stop.touch()
        final = await run.result()
    assert 0 < final.epoch < 10**6
    assert run.stop_reason == f"asked for by StopFile({str(stop)!r})"


class Unreliable:
    """Fails several times before it says yes."""

    def __init__(self) -> None:
        self.asked = 0

    def should_stop(self) -> bool:
        self.asked += 1
        if self.asked < 4:
            raise ConnectionError("no answer")
        return self.asked == 6


@pytest.mark.anyio
async def test_a_source_that_fails_is_reported_once_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    source, run = Unreliable(), FakeRun()
    async with HookEngine([StopRequest(source, 0.001)], run).running():
        await until(lambda: bool(run.wishes))
    assert source.asked == 6
    assert len(run.wishes) == 1
    assert caplog.text.count("could not be asked") == 1


@pytest.mark.parametrize("make", [lambda: Heartbeat(Path("x"), 0), lambda: StopRequest(Unreliable(), -1.0)])
def test_no_time_between_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="expected more than 0"):
        make()


def test_the_system_is_looked_at_in_the_units_that_are_documented() -> None:
    usage = SystemUsage()
    usage.look()
    begin = time.process_time()
    kept = bytearray(os.urandom(50_000_000))
    while time.process_time() - begin < 0.3:
        pass
    seen = usage.look()
    own = psutil.Process().memory_info().rss
    assert seen["system/host_memory"] == pytest.approx(own, rel=0.2)
    assert seen["system/run_memory"] >= seen["system/host_memory"] * 0.8
    assert seen["system/host_memory"] > len(kept)
    assert 0 < seen["system/cpu"] <= 1
    assert 0 < seen["system/memory"] < 1
    assert 0 < seen["system/run_cpu"] <= (os.cpu_count() or 1) * 1.5


def test_the_system_is_watched_in_a_thread_that_ends() -> None:
    usage = SystemUsage(0.01)
    usage.start()
    deadline = time.monotonic() + 20
    while not usage.latest:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    usage.stop()
    assert usage.thread is not None
    usage.thread.join(20)
    assert not usage.thread.is_alive()


def fake_library(fails: bool) -> Any:
    """What of NVIDIA's library is used, for a machine without its hardware."""

    class NVMLError(Exception): ...

    def count() -> int:
        if fails:
            raise NVMLError
        return 2

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=10 + handle, total=100),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=25 * (handle + 1)),
    )


@pytest.mark.parametrize("fails", [False, True])
def test_gpus_are_told_of_where_there_are_any(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_library(fails))
    seen = {name: value for name, value in SystemUsage().look().items() if name.startswith("system/gpu")}
    expected = {
        "system/gpu/0/memory": 10.0,
        "system/gpu/0/memory_total": 100.0,
        "system/gpu/0/utilization": 0.25,
        "system/gpu/1/memory": 11.0,
        "system/gpu/1/memory_total": 100.0,
        "system/gpu/1/utilization": 0.5,
    }
    assert seen == ({} if fails else expected)
