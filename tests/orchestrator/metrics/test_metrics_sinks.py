"""Sinks in runs: what they get, what they can't spoil, and what is left after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from orchestrator import ConfigurationError, Hook, MetricsConfig, MetricsHook, Trainer
from orchestrator.checks.configuration import check_config
from orchestrator.config.own_code import OwnCodeError
from orchestrator.hooks.included import metrics as metrics_module
from orchestrator.metrics import Prometheus, Record, RunInfo
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import FakeRun, HookEngine, publish_epochs, until
from tests.orchestrator.training import small_config
from tests.paths import PROJECT

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Recording:
    """Keeps all that it gets; waits in `write` until the gate is open."""

    def __init__(self) -> None:
        self.run: RunInfo | None = None
        self.records: list[Record] = []
        self.closed = False
        self.gate = threading.Event()
        self.gate.set()

    def open(self, run: RunInfo) -> None:
        self.run = run

    def write(self, record: Record) -> None:
        self.gate.wait(60)
        self.records.append(record)

    def close(self) -> None:
        self.closed = True


MADE: list[Recording] = []


class Broken(Recording):
    def write(self, record: Record) -> None:
        raise ConnectionError("the dashboard is gone")


def recording() -> Recording:
    """What a configuration names."""
    MADE.append(Recording())
    return MADE[-1]


async def test_a_sink_of_ones_own_gets_what_the_file_gets(tmp_path: Path) -> None:
    sink = Recording()
    config = small_config(epochs=4, run_dir=tmp_path / "run")
    final = await Trainer(config, hooks=[MetricsHook(sinks=[sink])]).run()
    assert sink.records == lines_of(tmp_path / "run")
    assert len(sink.records) == final.epoch
    assert sink.closed
    assert sink.run is not None
    assert (sink.run.run_dir, sink.run.epoch) == (tmp_path / "run", 0)
    assert sink.run.settings["learning.minibatches"] == 2


async def test_configured_sinks_are_added_also_to_a_hook_of_ones_own(tmp_path: Path) -> None:
    settings = MetricsConfig(sinks=(f"{__name__}:recording",), jsonl=False)
    MADE.clear()
    await Trainer(small_config(epochs=3, metrics=settings)).run()  # a run without a folder
    own = Recording()
    await Trainer(small_config(epochs=3, metrics=settings), hooks=[MetricsHook([own])]).run()
    first, second = MADE
    assert first.records
    assert [record["epoch"] for record in first.records] == list(range(1, len(first.records) + 1))
    assert own.records == second.records
    assert own.records


async def test_a_sink_that_still_hangs_from_an_earlier_run_gets_the_next_runs_records_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_module, "CLOSING_SECONDS", 0.1)
    monkeypatch.setattr(metrics_module, "CANCELLED_SECONDS", 0.1)
    calls: list[object] = []

    class Noting(Recording):
        def open(self, run: RunInfo) -> None:
            calls.append(("open", run.run_id))

        def write(self, record: Record) -> None:
            self.gate.wait(60)
            calls.append(record["epoch"])

        def close(self) -> None:
            calls.append("close")

    sink = Noting()
    sink.gate.clear()
    trainer = Trainer(small_config(epochs=2), hooks=[MetricsHook([sink])])
    runs: list[str] = []
    for _ in range(2):
        with anyio.fail_after(60):
            final = await trainer.run()
        runs.append(trainer.current_run.run_id)
    sink.gate.set()
    one_run = [*range(1, final.epoch + 1), "close"]
    expected = [("open", runs[0]), *one_run, ("open", runs[1]), *one_run]
    await until(lambda: len(calls) == len(expected))
    assert calls == expected, "one after the other, in one thread at a time"


async def test_a_sink_that_fails_or_hangs_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "CLOSING_SECONDS", 0.1)
    monkeypatch.setattr(metrics_module, "CANCELLED_SECONDS", 0.1)
    hanging, healthy = Recording(), Recording()
    hanging.gate.clear()
    hook = MetricsHook([Broken(), hanging, healthy])
    final = await Trainer(small_config(epochs=6, run_dir=tmp_path / "run"), hooks=[hook]).run()
    assert healthy.records == lines_of(tmp_path / "run")
    assert len(healthy.records) == final.epoch
    assert not hanging.records
    reports = [record.getMessage() for record in caplog.records if record.name == "orchestrator.metrics"]
    assert reports.count("the metrics sink Broken failed to write a record; the run continues") == 1
    assert f"the metrics sink Broken has lost {final.epoch} records" in reports
    assert "these metrics sinks have not finished in time, and are left: Recording" in reports
    assert len(reports) == 3
    hanging.gate.set()


async def test_a_cancelled_run_closes_its_sinks() -> None:
    sink = Recording()
    trainer = Trainer(small_config(epochs=10**6), hooks=[MetricsHook([sink])])
    with anyio.CancelScope() as scope:
        async with trainer.start() as run:
            await run.next_state(None)
            scope.cancel()
            await anyio.sleep_forever()
    assert sink.closed
    assert sink.records
    assert [record["epoch"] for record in sink.records] == list(range(1, len(sink.records) + 1))


async def test_tensorboard_and_prometheus_by_configuration(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = MetricsConfig(tensorboard=True, prometheus=True, prometheus_port=0)
    trainer = Trainer(small_config(epochs=10**6, run_dir=tmp_path / "run", metrics=settings))
    [hook] = (hook for hook in trainer.hooks if isinstance(hook, MetricsHook))
    [endpoint] = (sink for sink in hook.configured if isinstance(sink, Prometheus))
    async with trainer.start() as run:
        scraped = ""
        async with httpx.AsyncClient(trust_env=False) as client:
            while "orchestrator_loss_ppo_actor_entropy{" not in scraped:
                await run.next_state(run.state)
                if endpoint.port is not None:
                    scraped = (await client.get(f"http://127.0.0.1:{endpoint.port}/metrics")).text
        run.stop()
    assert f'orchestrator_hook_handled{{hook="metrics",run="{run.run_id}"}}' in scraped
    events: Any = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    lines = lines_of(tmp_path / "run")
    for name in ("loss/ppo_critic/value_loss", "time/learn_fraction", "hook/checkpoint/lag"):
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert read == [(line["agent_step"], pytest.approx(line[name], rel=1e-6)) for line in lines]


async def test_a_run_that_goes_on_has_each_epoch_once(tmp_path: Path) -> None:
    async def run_engine(first: int, *epochs: int) -> None:
        run = FakeRun()
        run.run_dir = tmp_path
        engine = HookEngine([MetricsHook()], run)
        async with engine.running():
            await engine.publish("on_new_training_run", TrainerState(epoch=first))
            await publish_epochs(engine, *epochs)
            await engine.drain(20)

    await run_engine(0, 1, 2, 3, 4, 5)
    await run_engine(3, 4, 5, 6)
    assert [line["epoch"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


class Announce(Hook):
    """Says which epochs the metrics hook is done with."""

    after = ("metrics",)
    overflow = "block"

    async def on_epoch_end(self, state: TrainerState) -> None:
        print(state.epoch, flush=True)


def test_a_kill_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import anyio\n"
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        "from orchestrator import MetricsConfig, Trainer\n"
        "from tests.orchestrator.metrics.test_metrics_sinks import Announce\n"
        "from tests.orchestrator.training import small_config\n"
        "if __name__ == '__main__':\n"
        "    metrics = MetricsConfig(tensorboard=True)\n"
        "    config = small_config(epochs=10**6, run_dir=Path(sys.argv[1]), metrics=metrics)\n"
        "    anyio.run(Trainer(config, hooks=[Announce()]).run)\n"
    )
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 20:
            break
    os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    announced = max([20, *map(int, rest.split())])
    *whole, last = (folder / "metrics.jsonl").read_text().split("\n")
    epochs = [json.loads(line)["epoch"] for line in whole]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) >= announced
    assert last == "" or len(epochs) > announced, "a line cut short is not one that was announced"


def test_what_is_no_sink_is_refused() -> None:
    nothing: Any = object()
    with pytest.raises(TypeError, match="is no sink of metrics: it has no open, no write, no close"):
        MetricsHook([nothing])
    with pytest.raises(OwnCodeError, match="no write, no close"):
        Trainer(small_config(metrics=MetricsConfig(sinks=(f"{__name__}:Half",))))


class Half:
    def open(self, run: RunInfo) -> None: ...


def problems_of(**settings: Any) -> dict[str, str]:
    run_dir = settings.pop("run_dir", None)
    with pytest.raises(ConfigurationError) as caught:
        check_config(small_config(run_dir=run_dir, metrics=MetricsConfig(**settings)))
    return {problem.field: f"{problem.expected}; {problem.cure}" for problem in caught.value.problems}


def test_wrong_settings_are_errors_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "a run with a folder" in problems_of(tensorboard=True)["metrics.tensorboard"]
    assert "a run with a folder" in problems_of(heartbeat=2.0)["metrics.heartbeat"]
    assert "0 (any free one) to 65535" in problems_of(prometheus_port=65536)["metrics.prometheus_port"]
    assert "package.module:function" in problems_of(sinks=("nothing",))["metrics.sinks"]
    assert "has no nothing" in problems_of(sinks=("tests.environments:nothing",))["metrics.sinks"]
    for module in ("tensorboard", "wandb", "prometheus_client"):
        monkeypatch.setitem(sys.modules, module, None)
    missing = problems_of(run_dir=tmp_path / "run", tensorboard=True, wandb="offline", prometheus=True)
    assert set(missing) == {"metrics.tensorboard", "metrics.wandb", "metrics.prometheus"}
    assert "prometheus_client is not installed" in missing["metrics.prometheus"]
    assert "pip install 'async-rl-orchestrator[wandb]'" in missing["metrics.wandb"]
