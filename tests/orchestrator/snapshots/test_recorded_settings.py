"""A run, its repetition from config.toml and its resumption are made with the very same settings, wherever the process
goes meanwhile; what the user changes in config.toml in between is honored or refused."""

from __future__ import annotations

import datetime
import enum
import logging
import math
import os
import tomllib
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

from orchestrator import (
    ConfigurationError,
    EvaluationConfig,
    EvaluationTask,
    Hook,
    LearningConfig,
    MetricsConfig,
    Trainer,
    TrainerConfig,
)
from orchestrator.__main__ import main
from orchestrator.checkpoints import find_checkpoint
from tests.environments import Counting
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.snapshots.test_recorded_settings"


def make_telling(log: str, **options: Any) -> Counting:
    """Tells a file which options it is made with, and then changes them."""
    with Path(log).open("a") as file:
        file.write(repr(options) + "\n")
    for value in options.values():
        if isinstance(value, dict):
            value.clear()
        if isinstance(value, list):
            value.append("changed")
    return Counting()


class Roaming(Counting):
    """Changes the process's folder at every reset."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def reset(self, **options: Any) -> Any:
        os.chdir(self._folder)
        return super().reset(**options)


def make_roaming(folder: str) -> Roaming:
    return Roaming(folder)


def config_with(options: Mapping[Any, object], folder: Path | None, **settings: Any) -> TrainerConfig:
    environment = settings.pop("environment", f"{HERE}:make_telling")
    config = small_config(environment=environment, run_dir=folder, metrics=MetricsConfig(progress="off"), **settings)
    return replace(config, collection=replace(config.collection, environment_options=options))


def train(config: TrainerConfig | None = None, **options: Any) -> TrainerState:
    return anyio.run(Trainer(config, **options).run)


PLAIN: dict[str, object] = {
    "nested": {"z": {"deep": [1, [2.0, {"a": True}]]}, "a": 1, "m": {}},
    "number": 1,
    "float": 1.0,
    "tiny": 1e-300,
    "large": 2**70,
    "infinite": -math.inf,
    "nan": math.nan,
    "zero": -0.0,
    "text": 'ünï "quoted" \\ \n\r\t\x00 # [a]',
    "empty": "",
    "on": False,
    "list": [],
    "mixed": [1, "a", None.__class__.__name__, [[]], {"b": {"c": 1}, "a": 2}],
    "day": datetime.date(2020, 1, 1),
    "time": datetime.time(12, 30, 0, 5),
    "moment": datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC),
}


def test_an_environment_gets_the_very_same_options_in_a_run_its_repetition_and_its_resumption(tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = {"log": str(log), **PLAIN}
    config = config_with(options, tmp_path / "run", epochs=2)
    train(config)
    assert main(["train", "--config", str(tmp_path / "run" / "config.toml")]) == 0
    assert (tmp_path / "run-2" / "config.toml").exists()
    train(replace(config, total_agent_steps=4 * config.steps_per_epoch), resume=tmp_path / "run")
    words = ["train", "--resume", str(tmp_path / "run"), "--total-agent-steps", str(6 * config.steps_per_epoch)]
    assert main(words) == 0
    assert main(["eval", str(tmp_path / "run"), "--episodes", "1"]) == 0
    told = log.read_text().splitlines()
    assert len(told) >= 4 * 4
    assert set(told) == {told[0]}
    assert {name: repr(value) for name, value in PLAIN.items() if name != "nested"}.items() <= {
        name: repr(value) for name, value in eval(told[0], {**vars(math), "datetime": datetime}).items()
    }.items()


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Point:
    x: int = 1


class Text(str):
    __slots__ = ()


def circle() -> list[object]:
    items: list[object] = []
    items.append(items)
    return items


REFUSED: dict[str, tuple[object, str, str]] = {
    "tuple": ((1, 2), "", "[1, 2]"),
    "empty tuple": ((), "", "[]"),
    "tuple within": ([1, {"a": (1,)}], "[1].a", "[1]"),
    "None": (None, "", "leave it out"),
    "None within": ({"a": None}, ".a", "leave it out"),
    "numpy integer": (np.int64(3), "", "tolist()"),
    "numpy float64": (np.float64(0.5), "", "tolist()"),
    "numpy float32": (np.float32(0.5), "", "tolist()"),
    "numpy bool": (np.True_, "", "tolist()"),
    "numpy array": (np.zeros(2), "", "tolist()"),
    "numpy text": (np.str_("a"), "", "tolist()"),
    "set": ({1}, "", "[1]"),
    "frozenset": (frozenset({1}), "", "[1]"),
    "path": (Path("a/b"), "", "'a/b'"),
    "enum": (Colour.RED, "", "'red'"),
    "number enum": (Level.LOW, "", "1"),
    "dataclass": (Point(), "", "package.module:function"),
    "function": (print, "", "package.module:function"),
    "bytes": (b"a", "", "package.module:function"),
    "complex": (1j, "", "package.module:function"),
    "subclass of text": (Text("a"), "", "package.module:function"),
    "mapping": ({"a": OrderedDict(b=1)}, ".a", "plain dict"),
    "number as key": ({1: "a"}, "", "'1'"),
    "key within": ([{(1, 2): "a"}], "[0]", "'(1, 2)'"),
    "half a character": ("\ud800", "", "package.module:function"),
    "half a character as key": ({"\ud800": 1}, "", "keys of a table"),
    "zone": (datetime.time(1, 2, tzinfo=datetime.UTC), "", "package.module:function"),
    "fold": (datetime.timedelta(1), "", "package.module:function"),
    "huge number": (10**5000, "", "package.module:function"),
    "list in itself": (circle(), "[0]" * 49, "package.module:function"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("place", ["training", "task"])
def test_an_option_that_the_file_cannot_give_back_is_refused_at_the_start_by_its_name(
    kind: str, place: str, tmp_path: Path
) -> None:
    value, within, cure = REFUSED[kind]
    log = tmp_path / "log"
    if place == "training":
        config, field = (
            config_with({"log": str(log), "goal": value}, tmp_path / "run"),
            "collection.environment_options",
        )
    else:
        config, field = config_with({"log": str(log)}, tmp_path / "run"), "evaluation.tasks[0].options"
        tasks = (EvaluationTask(name="other", options={"log": str(log), "goal": value}),)
        config = replace(config, evaluation=EvaluationConfig(tasks=tasks))
    with pytest.raises(ConfigurationError) as caught:
        train(config)
    problems = [problem for problem in caught.value.problems if problem.field == f"{field}.goal{within}"]
    assert len(problems) == 1, caught.value
    assert cure in problems[0].cure
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_and_text_of_enums_in_settings_themselves_are_recorded_as_what_they_are(
    tmp_path: Path,
) -> None:
    learning = LearningConfig(update_epochs=1, minibatches=Level.LOW, learning_rate=np.float64(0.001), weight_decay=0)
    config = config_with({"log": str(tmp_path / "log")}, tmp_path / "run", epochs=1, learning=learning)
    train(replace(config, seed=Level.LOW))
    recorded = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert recorded["learning"]["learning_rate"] == 0.001
    assert recorded["seed"] == 1
    longer = replace(config, total_agent_steps=3 * config.steps_per_epoch)
    assert train(longer, resume=tmp_path / "run").epoch >= 3


# What the user changes in config.toml before the run goes on.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two epochs."""
    train(small_config(epochs=2, run_dir=tmp_path / "run", metrics=MetricsConfig(progress="off")))
    return tmp_path / "run"


def edit(run: Path, before: str, after: str) -> str:
    file = run / "config.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    return file.read_text()


def test_an_edit_of_what_may_change_is_honoured_on_resume(run: Path) -> None:
    edit(run, "total_agent_steps = 129", "total_agent_steps = 640  # twice as long")
    text = edit(run, "trace = false", "trace = true")
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "trace.json").exists()
    assert find_checkpoint(run).manifest["agent_step"] >= 640
    assert (run / "config.toml").read_text() == text, "with its notes"


@pytest.mark.parametrize(
    ("before", "after", "field", "was"),
    [
        ("learning_rate = 0.0025", "learning_rate = 0.5", "learning.learning_rate = 0.5", "0.0025"),
        ('environment = "CartPole-v1"', 'environment = "Acrobot-v1"', "environment = 'Acrobot-v1'", "'CartPole-v1'"),
        ("[collection.environment_options]", "[collection.environment_options]\nn = 1", "{'n': 1}", "{}"),
    ],
)
def test_an_edit_of_what_may_not_change_is_refused_with_both_values(
    run: Path, before: str, after: str, field: str, was: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = edit(run, before, after)
    assert main(["train", "--resume", str(run), "--total-agent-steps", "9999"]) == 2
    error = capsys.readouterr().err
    assert field in error
    assert was in error
    assert str(run / "config.toml") in error
    assert (run / "config.toml").read_text() == text
    with pytest.raises(ConfigurationError, match="may not change on resume"):
        Trainer(resume=run)


def test_an_edit_that_makes_no_settings_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = edit(run, "seed = 1", "seed =")
    assert main(["train", "--resume", str(run)]) == 2
    assert "config.toml" in capsys.readouterr().err
    assert (run / "config.toml").read_text() == text


def test_an_edit_that_something_else_replaces_is_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(run, "keep = 3", "keep = 1")
    with caplog.at_level(logging.WARNING):
        words = ["train", "--resume", str(run), "--total-agent-steps", "640", "--checkpoints.keep", "2"]
        assert main(words) == 0
    assert "checkpoints.keep = 2, as asked for now, takes the place of 1 in config.toml" in caplog.text
    assert "keep = 2" in (run / "config.toml").read_text()


def test_an_edited_folder_is_where_the_run_goes_on(run: Path) -> None:
    edit(run, "total_agent_steps = 129", "total_agent_steps = 640")
    edit(run, f'run_dir = "{run}"', f'run_dir = "{run}-elsewhere"')
    assert main(["train", "--resume", str(run)]) == 0
    assert find_checkpoint(f"{run}-elsewhere").manifest["agent_step"] >= 640


def test_a_run_that_was_moved_goes_on_where_it_is(run: Path) -> None:
    moved = run.rename(run.with_name("moved"))
    assert main(["train", "--resume", str(moved), "--total-agent-steps", "640"]) == 0
    assert main(["train", "--resume", str(moved), "--total-agent-steps", "1280"]) == 0
    assert find_checkpoint(moved).manifest["agent_step"] >= 1280
    assert not run.exists()


# Paths.


def test_a_tilde_is_the_home_folder_in_code_in_files_and_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    small = small_config(epochs=1, metrics=MetricsConfig(progress="off"))
    train(replace(small, run_dir="~/code"))  # type: ignore[arg-type]
    train(replace(small, run_dir=Path("~/code too")))
    file = tmp_path / "file.toml"
    file.write_text((tmp_path / "code" / "config.toml").read_text().replace(str(tmp_path), "~").replace("code", "file"))
    assert main(["train", "--config", "~/file.toml"]) == 0
    assert main(["train", "--config=~/file.toml", "--run-dir=~/command"]) == 0
    assert main(["train", "--resume", "~/command", "--total-agent-steps", "640"]) == 0
    assert Trainer(resume="~/code").config.run_dir == tmp_path / "code"
    assert main(["eval", "~/command", "--episodes", "1"]) == 0
    assert main(["report", "~/code", "~/command", "--output", "~/page.html"]) == 0
    assert main(["checkpoints", "list", "~/code"]) == 0
    assert main(["checkpoints", "export", "~/code", "~/weights.safetensors"]) == 0
    made = {entry.name for entry in tmp_path.iterdir()}
    assert {"code", "code too", "file", "command", "page.html", "weights.safetensors"} <= made
    assert "~" not in made


class RoamingHook(Hook):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def on_epoch_end(self, state: TrainerState) -> None:
        os.chdir(self._folder)


@pytest.mark.parametrize("who", ["environment", "hook"])
def test_a_run_with_a_relative_folder_stays_there_when_the_process_goes_elsewhere(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {"folder": str(tmp_path / "elsewhere")}
    metrics = MetricsConfig(progress="off", trace=True, heartbeat=0.1, tensorboard=True)
    config = replace(config_with(options, Path("runs/a"), environment=f"{HERE}:make_roaming"), metrics=metrics)
    hooks: list[Hook] = []
    if who == "hook":
        config = replace(small_config(run_dir="runs/a"), metrics=metrics)
        hooks = [RoamingHook(tmp_path / "elsewhere")]
    train(config, hooks=hooks)
    monkeypatch.chdir(tmp_path)
    longer = replace(config, total_agent_steps=6 * config.steps_per_epoch)
    trainer = Trainer(longer, resume="runs/a", hooks=hooks)
    os.chdir(tmp_path / "elsewhere")
    assert anyio.run(trainer.run).epoch >= 6
    assert not list((tmp_path / "elsewhere").iterdir())
    names = {entry.name for entry in (tmp_path / "runs" / "a").iterdir()}
    assert {"config.toml", "metrics.jsonl", "checkpoints", "trace.json", "heartbeat.json", "tensorboard"} <= names


def test_a_module_that_changes_the_folder_when_it_is_imported_does_not_move_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    module = f"import os\nfrom {HERE} import Counting as make\nos.chdir({str(tmp_path / 'elsewhere')!r})\n"
    (tmp_path / "roaming_module.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    small = ["--collection.num_environments", "4", "--collection.horizon", "32", "--total-agent-steps", "128"]
    inline = ["--collection.backend", "inline", "--metrics.progress", "off"]
    words = ["train", "--environment", "roaming_module:make", "--run-dir", "runs/a", *small, *inline]
    assert main(words) == 0
    assert (tmp_path / "runs" / "a" / "config.toml").exists()
    assert not list((tmp_path / "elsewhere").iterdir())
