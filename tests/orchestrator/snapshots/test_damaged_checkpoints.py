"""Whatever a checkpoint's files hold: resuming from it and evaluating it works, or an error names the file."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator import CheckpointsConfig, ConfigurationError, Trainer
from orchestrator.__main__ import main
from orchestrator.checkpoints import CheckpointError, CheckpointFolder
from orchestrator.checkpoints.checkpoint import Checkpoint, open_checkpoint
from orchestrator.command.checkpoints import run_command
from orchestrator.command.evaluation import evaluate_checkpoint
from orchestrator.snapshots.checkpoint_files import read_checkpoint
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = ("policy.safetensors", "optimizer.safetensors", "training.json", "training.npz", "config.toml", "manifest.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("run")
    config = small_config(epochs=2, staleness=0, run_dir=folder, checkpoints=CheckpointsConfig(every=1))
    anyio.run(Trainer(config).run)
    return CheckpointFolder(folder / "checkpoints").newest_valid()


def damages(content: bytes) -> Iterator[bytes]:
    yield b""
    yield content[: len(content) // 2]
    yield b"\xff\xfe not what it was"
    yield b"[1, 2]"
    yield b"{}"
    draw = random.Random(1)
    for _ in range(8):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[draw.randrange(min(len(damaged), 400))] ^= 1 << draw.randrange(8)
        yield bytes(damaged)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changed_on_disk_is_named_by_every_command(
    name: str, saved: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (saved.path / name).read_bytes()
    for damaged in (*damages(content), None):
        path = saved.path / name
        try:
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=name):
                Trainer(resume=saved.path)
            with pytest.raises(CheckpointError, match=name):
                evaluate_checkpoint(saved.path, episodes=1)
            if name != "manifest.json":  # or else it is none
                assert run_command(["verify", str(saved.path)]) == 1
                assert name in capsys.readouterr().err
        finally:
            path.write_bytes(content)


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_file_that_was_written_wrong_is_named(name: str, saved: Checkpoint, tmp_path: Path) -> None:
    """As above, where the manifest says that it is as it was written: by another program, say."""
    files = {file: saved.read(file) for file in saved.manifest["files"]}
    facts = {"agent_step": saved.manifest["agent_step"], "policy_version": saved.manifest["policy_version"]}
    refused = 0
    for number, damaged in enumerate(damages(files[name])):
        folder = CheckpointFolder(tmp_path / str(number))
        checkpoint = open_checkpoint(folder.commit(epoch=2, facts=facts, files={**files, name: damaged}))
        try:
            read_checkpoint(checkpoint)
        except ConfigurationError:
            assert name == "config.toml"  # settings that this release does not know
        except CheckpointError as error:
            refused += name in str(error)
    assert refused >= 2


@pytest.mark.parametrize("way", ["on disk", "written so"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_told_with_the_cure(name: str, way: str, saved: Checkpoint, tmp_path: Path) -> None:
    junk = b"\xff\xfe not what it was"
    if way == "on disk" or name == "manifest.json":
        path = shutil.copytree(saved.path, tmp_path / "copy" / saved.path.name)
        (path / name).write_bytes(junk)
    else:
        files = {file: saved.read(file) for file in saved.manifest["files"]}
        facts = {fact: saved.manifest[fact] for fact in ("agent_step", "policy_version", "resumable")}
        path = CheckpointFolder(tmp_path).commit(epoch=2, facts=facts, files={**files, name: junk})
    with pytest.raises(CheckpointError) as caught:
        anyio.run(Trainer(small_config(epochs=9, staleness=0), resume=path).run)
    assert f"{path / name} is damaged" in str(caught.value)
    assert "; name another checkpoint: `orchestrator checkpoints " in str(caught.value)
    assert "pickle=" not in str(caught.value)


@pytest.mark.parametrize("place", ["checkpoint", "run", "--config"])
def test_a_file_with_settings_that_this_release_does_not_know_is_named(
    place: str, saved: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved.path.parent.parent, run)
    if place == "checkpoint":
        files = {file: saved.read(file) for file in saved.manifest["files"]}
        facts = {fact: saved.manifest[fact] for fact in ("agent_step", "policy_version", "resumable")}
        files["config.toml"] = b"sed = 3\n" + files["config.toml"]
        path = CheckpointFolder(run / "checkpoints").commit(epoch=3, facts=facts, files=files) / "config.toml"
    else:
        path = run / "config.toml"
        path.write_text("sed = 3\n" + path.read_text())
    words = ["--config", str(path)] if place == "--config" else ["--resume", str(run)]
    assert main(["train", *words]) == 2
    output = capsys.readouterr().err
    assert output.startswith(f"orchestrator train: 1 problem in {path}; nothing was started.\n")
    assert "sed = 3" in output
