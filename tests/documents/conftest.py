"""The folder that the reader of the documents is in: with runs, and with code of one's own."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator import CheckpointsConfig, EvaluationConfig, Trainer, TrainerConfig
from tests.documentation import code_blocks, text_of
from tests.documents.shortened import StopAfter, shorten_trainings, small
from tests.orchestrator.training import WaitForCheckpoints
from tests.paths import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUNS = ("first", "second")
MODULES = ("own", "my_package")


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after 60 epochs, with a checkpoint of every tenth."""
    config = TrainerConfig(
        environment="CartPole-v1",
        run_dir=tmp_path_factory.mktemp("stopped") / "first",
        checkpoints=CheckpointsConfig(every=10, keep=0),
        evaluation=EvaluationConfig(every=30, episodes=2),
    )
    config = small(config)
    anyio.run(Trainer(config, hooks=[StopAfter(60), WaitForCheckpoints(config)]).run)
    assert config.run_dir is not None
    return config.run_dir


@pytest.fixture
def folder(stopped_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the reader is: `runs/first` and `runs/second` are runs that were stopped, `own.py` is the reader's code."""
    for name in RUNS:
        run = shutil.copytree(stopped_run, tmp_path / "runs" / name)
        settings = run / "config.toml"
        settings.write_text(settings.read_text().replace(str(stopped_run), str(run)))
    assumed = (PROJECT / "tests" / "documents" / "assumed.py").read_text()
    shown = [code for page in ("environments.md", "extending.md") for code in code_blocks(text_of(page))]
    (tmp_path / "own.py").write_text("\n\n".join([assumed, *shown]))
    (tmp_path / "my_package.py").write_text(assumed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    for module in MODULES:
        sys.modules.pop(module, None)


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The trainers that are made in the test, whose trainings are shortened."""
    monkeypatch.setattr(Trainer, "__init__", Trainer.__init__)  # is put back
    return shorten_trainings()


@pytest.fixture
def short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """For commands, which need not train for long."""
    monkeypatch.setattr(Trainer, "__init__", Trainer.__init__)
    shorten_trainings(epochs=4)
