"""A run that waits for its experience while cores are idle is told so."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import pytest

from orchestrator import LearningConfig, MetricsConfig, Trainer
from orchestrator.hooks.included import idle_cores
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator import TrainerConfig

pytestmark = pytest.mark.slow


class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        time.sleep(1e-3)
        return super().step(action)


def slow() -> Slow:
    return Slow(gymnasium.make("CartPole-v1"))


@pytest.fixture(autouse=True)
def a_machine_with_16_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_cores, "SECONDS", 0.3)
    monkeypatch.setattr(idle_cores, "available_cores", lambda: 16)
    monkeypatch.setattr(idle_cores.os, "cpu_count", lambda: 16)
    seen = {"system/cpu": 0.2, "system/run_cpu": 2.0}
    monkeypatch.setattr(idle_cores.SystemUsage, "look", lambda self: seen)


def waiting(run_dir: Path, **collection: Any) -> TrainerConfig:
    config = small_config(environment=f"{__name__}:slow", epochs=10, run_dir=run_dir, num_environments=8, horizon=16)
    return dataclasses.replace(config, collection=dataclasses.replace(config.collection, **collection))


def said(config: TrainerConfig, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level("INFO", "orchestrator"):
        anyio.run(Trainer(config).run)
    return [record.getMessage() for record in caplog.records if "cores were idle" in record.getMessage()]


def test_it_is_said_once_with_what_would_use_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (text,) = said(waiting(tmp_path), caplog)
    assert "while 13 of 16 processor cores were idle" in text
    assert "collection.collectors = 8 (now 1), or with collection.environment_workers = 8 (now 0)" in text


def test_nothing_is_said_without_idle_cores(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_cores, "available_cores", lambda: 3)  # two of which are in use
    assert said(waiting(tmp_path), caplog) == []


def test_nothing_is_said_where_learning_takes_longest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learning = LearningConfig(update_epochs=60, minibatches=8, threads=1)
    assert said(small_config(epochs=10, learning=learning, run_dir=tmp_path), caplog) == []


def test_nothing_is_said_where_no_setting_helps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert said(waiting(tmp_path, num_environments=1, horizon=128), caplog) == []
    assert said(dataclasses.replace(waiting(tmp_path / "off"), metrics=MetricsConfig(warnings=False)), caplog) == []
