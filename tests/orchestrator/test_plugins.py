"""An installed package gives names to environments, networks, losses, hooks and sinks, for settings to use."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from orchestrator import LossesConfig, MetricsConfig, PolicyConfig, Trainer, TrainerConfig
from orchestrator.command.cli import run
from orchestrator.config.own_code import OwnCodeError
from orchestrator.environments import InvalidEnvironment, make_vector
from tests.orchestrator.training import small_config
from tests.paths import PROJECT

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.slow

DEADLINE = 200.0
MODULE = """
import gymnasium
from torch import nn

from losses import ppo_losses
from orchestrator import Hook


def environment():
    return gymnasium.make("CartPole-v1")


def wrapped(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: 2.0 * reward)


class Network(nn.Module):
    def __init__(self, spaces):
        super().__init__()
        self.layer = nn.Linear(spaces.observation.shape[0], spaces.action_parameters + 1)

    def forward(self, observation):
        output = self.layer(observation)
        return output[:, :-1], output[:, -1]


def losses():
    return ppo_losses(entropy_coefficient=0.0)


class Announce(Hook):
    async def on_training_end(self, state):
        print("announced", state.epoch)


class Printer:
    def open(self, run):
        print("opened")

    def write(self, record):
        pass

    def close(self):
        print("closed")
"""
POINTS = {
    "environments": {"maze": "maze_kit:environment", "maze-of-nothing": "maze_kit:nothing"},
    "wrappers": {"doubled": "maze_kit:wrapped"},
    "networks": {"maze_network": "maze_kit:Network"},
    "losses": {"maze_losses": "maze_kit:losses"},
    "hooks": {"announce": "maze_kit:Announce", "shell": "os:getcwd", "whole": "maze_kit"},
    "sinks": {"printer": "maze_kit:Printer"},
}
SETTINGS = TrainerConfig(
    environment="maze",
    environment_wrappers=("doubled",),
    hooks=("announce",),
    policy=PolicyConfig(network="maze_network"),
    losses=LossesConfig(names=("maze_losses",)),
    metrics=MetricsConfig(sinks=("printer",), progress="off"),
)


def entry_points(points: Mapping[str, Mapping[str, str]], quote: str = '"') -> str:
    lines: list[str] = []
    for kind, names in points.items():
        lines.append(f"[project.entry-points.{quote}orchestrator.{kind}{quote}]" if quote else f"[orchestrator.{kind}]")
        lines += [f"{name} = {quote}{value}{quote}" for name, value in names.items()]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a distribution is installed."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    (project / "maze_kit.py").write_text(MODULE)
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "maze-kit"\nversion = "1.0"\n'
        f'{entry_points(POINTS)}[tool.setuptools]\npy-modules = ["maze_kit"]\n'
    )
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, project], check=True, timeout=DEADLINE)
    return site


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(site)
    return site


def test_a_run_uses_what_an_installed_package_gives_names_to(site: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{PROJECT}"}

    def command(*words: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    names = [
        "--environment",
        "maze",
        "--environment-wrappers",
        "doubled",
        "--hooks",
        "announce",
        "--policy.network",
        "maze_network",
    ]
    names += ["--losses.names", "maze_losses", "--metrics.sinks", "printer", "--run-dir", "first"]
    small = ["--collection.num-environments", "4", "--collection.horizon", "32", "--metrics.progress", "off"]
    said = command("train", *names, *small, "--total-agent-steps", "512").split("\n")
    assert {"opened", "closed"} <= set(said)
    assert any(line.startswith("announced") for line in said)
    assert "announced 8" in command("train", "--resume", "first", "--total-agent-steps", "1024")
    # Whoever installed the package trusts it, whoever wrote the settings.
    assert "episodes" in command("eval", (tmp_path / "first").as_uri(), "--episodes", "1")


def test_settings_from_a_request_may_use_such_names(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(SETTINGS, collection=small_config().collection, total_agent_steps=2048)
    settings = replace(settings, collection=replace(settings.collection, backend="inline"))
    anyio.run(Trainer(settings, trust_code=False).run)
    assert "announced" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--environment", "maze1"], "did you mean maze"),
        (["--environment", "xxxxxxxx"], "use one of maze, maze-of-nothing, "),
        (["--environment", "maze-of-nothing"], "maze_kit has no nothing"),
        (["--policy.network", "maze_netwrk"], "did you mean maze_network?"),
        (
            ["--policy.network", "q"],
            "one of auto, mlp, cnn, lstm, tokens, tokens_lstm, maze_network, or package.module:function",
        ),
        (["--losses.names", "maze_loss"], "did you mean maze_losses?"),
        (["--hooks", "anounce"], "did you mean announce?"),
        (["--hooks", "shell"], "os is in Python's standard library"),
        (["--hooks", "whole"], "maze-kit declares 'whole' as 'maze_kit' in orchestrator.hooks"),
        (["--metrics.sinks", "print"], "did you mean printer?"),
    ],
)
def test_a_wrong_name_is_refused_before_the_start_with_those_that_there_are(
    installed: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *words]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", POINTS)
def test_a_name_that_two_packages_give_is_refused_with_both(
    installed: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(iter(POINTS[kind]))
    information = tmp_path / "other-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(entry_points({kind: {name: "other:make"}}, quote=""))
    monkeypatch.syspath_prepend(tmp_path)
    flag = {
        "wrappers": "environment-wrappers",
        "networks": "policy.network",
        "losses": "losses.names",
        "sinks": "metrics.sinks",
        "hooks": "hooks",
    }
    assert run(["train", f"--{flag.get(kind, 'environment')}", name]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"'{name}' is ambiguous: other and maze-kit have {kind} of this name" in said
    assert "write other:make or maze_kit:" in said


def test_a_package_does_not_replace_what_has_its_name_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "other-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    points = {
        "environments": {"CartPole-v1": "nowhere:make"},
        "networks": {"mlp": "nowhere:make", "auto": "nowhere:make"},
        "losses": {"ppo_actor": "nowhere:make"},
    }
    (information / "entry_points.txt").write_text(entry_points(points, quote=""))
    monkeypatch.syspath_prepend(tmp_path)
    assert anyio.run(Trainer(small_config(epochs=2)).run).epoch == 2


def test_who_uses_no_such_name_does_not_look_for_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def looked_for(**_: Any) -> Any:
        raise AssertionError("entry points were looked up")

    monkeypatch.setattr(importlib.metadata, "entry_points", looked_for)
    module = "tests.orchestrator.test_plugins"
    own = replace(SETTINGS, environment=f"{module}:environment", hooks=(f"{module}:hook",))
    own = replace(own, policy=PolicyConfig(), losses=LossesConfig(), metrics=MetricsConfig(sinks=(f"{module}:Sink",)))
    wrappers = ("gymnasium.wrappers:FlattenObservation",)
    own = replace(own, collection=small_config().collection, total_agent_steps=2048, environment_wrappers=wrappers)
    for config in (small_config(epochs=1), own):
        anyio.run(Trainer(config).run)
    assert capsys.readouterr().out == "called\n"


def environment() -> Any:
    import gymnasium

    return gymnasium.make("CartPole-v1")


def hook() -> Any:
    from orchestrator import Hook

    class Own(Hook):
        async def on_training_end(self, state: Any) -> None:
            print("called")

    return Own()


def no_hook() -> Any:
    return 3


class Sink:
    def open(self, run: Any) -> None: ...

    def write(self, record: Any) -> None: ...

    def close(self) -> None: ...


def test_a_function_of_settings_that_returns_no_hook_is_refused_by_name() -> None:
    name = "tests.orchestrator.test_plugins:no_hook"
    with pytest.raises(OwnCodeError, match=f"{name} returned 3, expected a Hook: correct the function"):
        Trainer(replace(small_config(), hooks=(name,)))


@pytest.mark.parametrize("setting", ["losses.names", "hooks", "metrics.sinks"])
def test_a_function_that_returns_something_else_is_wrong_input_for_the_command(
    setting: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "tests.orchestrator.test_plugins:no_hook"
    assert run(["train", f"--{setting}", name, "--run-dir", str(tmp_path / "run")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert name in error
    assert "returned 3" in error
    assert "correct the function" in error


def test_an_environment_that_no_package_gives_is_still_unknown(installed: Path) -> None:
    with pytest.raises(InvalidEnvironment, match="did you mean maze"):
        make_vector("mase", 1)
    with pytest.raises(OwnCodeError, match="did you mean announce"):
        Trainer(replace(small_config(), hooks=("anounce",)))
