"""A run that starts from the weights of another one, and from nothing else of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from orchestrator import CheckpointsConfig, ConfigurationError, Hook, PolicyConfig, Trainer, TrainerConfig
from orchestrator.checkpoints import CheckpointError
from orchestrator.command.cli import run as run_command
from orchestrator.config.file import read_config
from state import TrainerState
from tests.orchestrator.training import WaitForCheckpoints, small_config

pytestmark = pytest.mark.slow

NORMALISED = PolicyConfig(hidden_sizes=(8,), normalize_observations=True, normalize_rewards=True)


class First(Hook):
    """Keeps the weights of version 0, and the epoch of the first state."""

    async def on_new_training_run(self, state: TrainerState) -> None:
        assert state.policy is not None
        self.weights = {name: array.copy() for name, array in state.policy.tensors.items()}
        self.counters = state.epoch, state.agent_step, state.policy_version


def train(config: TrainerConfig, **settings: Any) -> tuple[TrainerState, First]:
    first = First()
    return anyio.run(Trainer(config, hooks=[first], **settings).run), first


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TrainerConfig:
    """A run of three epochs, with checkpoints of the second and of the last."""
    folder = tmp_path_factory.mktemp("source") / "run"
    config = small_config(epochs=3, run_dir=folder, policy=NORMALISED, checkpoints=CheckpointsConfig(every=2, keep=0))
    anyio.run(Trainer(config, hooks=[WaitForCheckpoints(config)]).run)
    return config


def saved(config: TrainerConfig, epoch: int) -> dict[str, Any]:
    from safetensors.numpy import load_file

    assert config.run_dir is not None
    return load_file(config.run_dir / "checkpoints" / f"{epoch:08d}" / "policy.safetensors")


def assert_same(weights: dict[str, Any], others: dict[str, Any]) -> None:
    assert weights.keys() == others.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


def fresh(source: TrainerConfig, folder: Path | None = None, **changes: Any) -> TrainerConfig:
    return replace(source, run_dir=folder, checkpoints=CheckpointsConfig(every=0), seed=9, **changes)


@pytest.mark.parametrize("form", ["run", "checkpoint", "address"])
def test_it_starts_with_the_weights_and_normalisers_and_counts_from_nothing(
    source: TrainerConfig, form: str, tmp_path: Path
) -> None:
    assert source.run_dir is not None
    places = {
        "run": (str(source.run_dir), 3),
        "checkpoint": (str(source.run_dir / "checkpoints" / "00000002"), 2),
        "address": (source.run_dir.as_uri(), 3),
    }
    where, epoch = places[form]
    final, first = train(fresh(source, tmp_path / "new", init_from=where))
    assert_same(first.weights, saved(source, epoch))
    assert first.counters == (0, 0, 0)
    assert final.epoch == 3
    assert float(first.weights["observation_normalizer.parts.0.count"]) > 0


def test_the_recorded_settings_name_the_very_checkpoint_so_that_the_run_repeats(
    source: TrainerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source.run_dir is not None
    monkeypatch.chdir(source.run_dir.parent)
    final, _ = train(fresh(source, tmp_path / "new", init_from="run"))
    recorded = read_config(tmp_path / "new" / "config.toml")
    assert recorded.init_from == str(source.run_dir / "checkpoints" / "00000003")
    monkeypatch.chdir(tmp_path)
    again, _ = train(replace(recorded, run_dir=None))
    assert final.policy is not None
    assert again.policy is not None
    assert_same(dict(final.policy.tensors), dict(again.policy.tensors))


def test_a_run_that_started_so_is_resumed_with_its_own_weights(source: TrainerConfig, tmp_path: Path) -> None:
    config = fresh(source, tmp_path / "new", init_from=str(source.run_dir))
    whole, _ = train(replace(config, run_dir=None, total_agent_steps=5 * 128))
    train(config)
    resumed, first = train(replace(config, total_agent_steps=5 * 128), resume=config.run_dir)
    assert first.counters[0] == 3
    assert whole.policy is not None
    assert resumed.policy is not None
    assert_same(dict(whole.policy.tensors), dict(resumed.policy.tensors))


def test_another_architecture_is_refused_tensor_by_tensor_and_leaves_nothing_behind(
    source: TrainerConfig, tmp_path: Path
) -> None:
    other = PolicyConfig(hidden_sizes=(6,), normalize_observations=False)
    with pytest.raises(CheckpointError) as caught:
        train(fresh(replace(source, policy=other), tmp_path / "new", init_from=str(source.run_dir)))
    message = str(caught.value)
    assert "network.actor.weight_0 is float32[4, 8] there and float32[4, 6] here" in message
    assert "it has observation_normalizer.parts.0.mean, which this one does not" in message
    assert "normalize_observations" in message
    assert not (tmp_path / "new").exists()


def test_what_is_no_run_is_an_error_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        Trainer(small_config(init_from=str(tmp_path)))


def test_weights_in_an_object_store_are_named_by_their_address(
    source: TrainerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.snapshots import initial_weights

    def found(where: str) -> Any:
        assert source.run_dir is not None
        assert where.startswith("s3://bucket/runs/first")
        return initial_weights_find(source.run_dir / "checkpoints" / "00000002")

    initial_weights_find = initial_weights.find_checkpoint
    monkeypatch.setattr(initial_weights, "find_checkpoint", found)
    for where in ("s3://bucket/runs/first", "s3://bucket/runs/first/checkpoints/00000002"):
        trainer = Trainer(fresh(source, init_from=where))
        assert trainer.config.init_from == "s3://bucket/runs/first/checkpoints/00000002"
    _, first = train(fresh(source, init_from="s3://bucket/runs/first"))
    assert_same(first.weights, saved(source, 2))


def test_a_resumed_run_takes_no_other_weights(
    source: TrainerConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert source.run_dir is not None
    code = run_command(["train", "--resume", str(source.run_dir), "--init-from", str(tmp_path)])
    assert code == 2
    assert "init_from" in (errors := capsys.readouterr().err)
    assert "--resume" in errors
    trainer = Trainer(replace(source, init_from=str(tmp_path), total_agent_steps=10_000), resume=source.run_dir)
    with pytest.raises(ConfigurationError, match="a resumed run has its own weights"):
        anyio.run(trainer.run)


def test_the_command_starts_from_other_weights(
    source: TrainerConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert source.run_dir is not None
    folder = tmp_path / "new"
    arguments = ["train", "--config", str(source.run_dir / "config.toml"), "--run-dir", str(folder)]
    assert run_command([*arguments, "--init-from", str(source.run_dir)]) == 0
    assert read_config(folder / "config.toml").init_from == str(source.run_dir / "checkpoints" / "00000003")
    manifest = json.loads((folder / "checkpoints" / "00000003" / "manifest.json").read_text())
    assert manifest["epoch"] == 3
    capfd.readouterr()
