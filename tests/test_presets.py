"""The presets: settings that come with the package, as the command and `read_preset` give them."""

from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator import ConfigurationError, StateUpdate, Trainer, TrainerConfig, read_preset
from orchestrator.checks.configuration import check_config
from orchestrator.command.cli import run, train_settings
from orchestrator.config.presets import preset_names, preset_text
from tests.paths import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from state.trainer_state import TrainerState

SMALL = ["--total-agent-steps", "512", "--collection.num-environments", "4", "--collection.horizon", "32"]
SMALL += ["--learning.minibatches", "4", "--collection.backend", "inline", "--metrics.progress", "off"]


@pytest.mark.parametrize("name", preset_names())
def test_the_settings_of_each_preset_work_together(name: str) -> None:
    # In another environment, since those of the extras need not be installed.
    check_config(replace(read_preset(name), environment="CartPole-v1", environment_wrappers=()))


def test_a_preset_says_the_score_that_the_readme_has_of_it() -> None:
    """Threshold and median of the agent steps until there, from the table `scripts/bench/learning.py --table` makes."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (PROJECT / "README.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    table = {row[0].strip("`"): row for row in rows if len(row) == 7}
    assert set(table) == set(preset_names())
    for name, (_, _, at_end, threshold, reached, _, _) in table.items():
        comment = " ".join(line.removeprefix("# ") for line in preset_text(name).splitlines() if line.startswith("#"))
        assert f"a mean return of {threshold} " in comment.replace("A mean", "a mean")
        seeds, steps = reached.split(", ", 1)
        assert f"after {steps} agent steps, the median of {'three' if seeds == '3 of 3' else 'two'} seeds" in comment
        if "at the end" in comment:
            assert f"{at_end.partition('(')[2].removesuffix(')')} at the end" in comment


def test_the_presets_are_listed_with_environment_and_extra(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == set(preset_names()) >= {"cartpole", "acrobot", "lunar_lander", "half_cheetah", "memory"}
    assert lines["cartpole"] == ["CartPole-v1"]
    assert lines["lunar_lander"] == ["LunarLander-v3", "needs", "the", "extra", "box2d"]
    assert lines["half_cheetah"] == ["HalfCheetah-v5", "needs", "the", "extra", "mujoco"]
    assert lines["door_key"] == ["minigrid:MiniGrid-DoorKey-6x6-v0", "needs", "the", "extra", "minigrid"]
    assert all(lines[name][0] == read_preset(name).environment for name in lines)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_printed_to_be_copied(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", name]) == 0
    copied = tmp_path / "own.toml"
    copied.write_text(capsys.readouterr().out)
    assert copied.read_text() == preset_text(name)
    assert train_settings(["--config", str(copied)])[1] == train_settings(["--preset", name])[1] == read_preset(name)


def test_flags_override_a_preset() -> None:
    preset = read_preset("half_cheetah")
    config = train_settings(["--preset", "half_cheetah", "--seed", "7", "--learning.discount", "0.9"])[1]
    assert config == replace(preset, seed=7, learning=replace(preset.learning, discount=0.9))
    assert preset.learning != TrainerConfig().learning


@pytest.mark.parametrize("words", [["presets", "lunar-lander"], ["train", "--preset", "lunar-lander"]])
def test_an_unknown_preset_is_refused_with_the_nearest(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert "did you mean lunar_lander?" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="did you mean lunar_lander"):
        read_preset("lunar-lander")


def test_more_presets_than_one_are_refused_with_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", "hopper", "acrobot"]) == 2
    shown = capsys.readouterr()
    assert "name = 'hopper acrobot'" in shown.err
    assert "print one after another: orchestrator presets hopper" in shown.err
    assert not shown.out
    assert run(["presets", "hopper", "akrobot"]) == 2
    assert "did you mean acrobot?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../config/settings", "/etc/passwd", "", "acrobot.toml"])
def test_a_preset_is_a_name_and_no_path(name: str) -> None:
    with pytest.raises(ConfigurationError, match="the name of a preset"):
        read_preset(name)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", "own.toml", "--preset", "acrobot"], "a preset or a file, not both"),
        (["--resume", "runs/first", "--preset", "acrobot"], "no --preset together with --resume"),
        (["acrobot"], "write --preset acrobot"),
        (["--presets", "acrobot"], "did you mean --preset?"),
        (["--preset"], "--preset"),
    ],
)
def test_a_preset_given_the_wrong_way_is_explained(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run(["train", *words])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert expected in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("lunar_lander", "Box2D", "box2d"), ("half_cheetah", "mujoco", "mujoco")]
)
def test_a_missing_extra_is_named_before_the_start(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in [one for one in sys.modules if one.startswith(f"gymnasium.envs.{extra}")]:
        monkeypatch.delitem(sys.modules, module)
    assert run(["train", "--preset", name, *SMALL]) == 2
    assert f"pip install 'async-rl-orchestrator[{extra}]'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_run_from_a_preset_records_its_settings_and_is_repeated_from_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator", "train"]
    for words in (["--preset", "acrobot", "--run-dir", "first", *SMALL], ["--config", "first/config.toml"]):
        subprocess.run([*command, *words], cwd=tmp_path, env={"PYTHONPATH": str(PROJECT)}, check=True, timeout=200)
    recorded = [tomllib.loads((tmp_path / run / "config.toml").read_text()) for run in ("first", "first-2")]
    assert recorded[0].pop("run_dir") != recorded[1].pop("run_dir")
    assert recorded[0] == recorded[1]
    assert recorded[0]["environment"] == "Acrobot-v1"
    assert recorded[0]["collection"]["horizon"] == 32


def best_mean_return(network: str, total_agent_steps: int, enough: float) -> float:
    """The greatest mean return over 100 episodes until the end, or until it is `enough`.

    Where exactly a network learns the task depends on the rounding of the processor; that it does, must not.
    """
    config = read_preset("memory")
    config = replace(config, total_agent_steps=total_agent_steps, policy=replace(config.policy, network=network))
    trainer = Trainer(config)
    best = -math.inf

    @trainer.on_epoch_end(overflow="block")
    async def watch(state: TrainerState) -> StateUpdate:
        nonlocal best
        assert state.stats_tracker is not None
        best = max(best, state.stats_tracker.recent_mean("episode_return") or -math.inf)
        return StateUpdate(stop=best > enough)

    anyio.run(trainer.run)
    return best


@pytest.mark.slow
def test_what_a_network_without_memory_cannot_do_the_lstm_learns() -> None:
    assert best_mean_return("lstm", total_agent_steps=150_000, enough=0.8) > 0.8
    assert best_mean_return("mlp", total_agent_steps=30_000, enough=0.8) < 0.6, "chance is 0, its deviation 0.1"
