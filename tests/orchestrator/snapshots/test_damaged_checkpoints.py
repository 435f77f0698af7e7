"""Whatever a checkpoint's files hold: resuming from it and evaluating it works, or an error names the file."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
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
from orchestrator.snapshots.resume import find_resume_source
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@pytest.mark.parametrize("name", [*FILES, "spaces.json"])
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


def copy_of(saved: Checkpoint, to: Path) -> Path:
    """A copy of the run with the checkpoints 1 and 2."""
    return Path(shutil.copytree(saved.path.parent.parent, to))


@pytest.mark.parametrize("way", ["missing", "folder", "link"])
def test_a_newest_checkpoint_without_its_manifest_is_passed_over_with_the_reason(
    way: str, saved: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_of(saved, tmp_path / "run")
    newest = run / "checkpoints" / "00000002"
    manifest = newest / "manifest.json"
    manifest.unlink()
    if way == "folder":
        manifest.mkdir()
    elif way == "link":
        manifest.symlink_to(tmp_path / "nowhere")
    source = find_resume_source(run)
    assert source.checkpoint.epoch == 1
    assert f"checkpoint {newest}, which is newer, is passed over: " in caplog.text
    assert ("it has no manifest.json" if way == "missing" else "its manifest.json is no file") in caplog.text
    shutil.rmtree(run / "checkpoints" / "00000001")
    with pytest.raises(CheckpointError, match=r"has no valid checkpoint; .*00000002: it.* manifest\.json.*; name a"):
        Trainer(resume=run)


def test_a_copied_checkpoint_with_a_higher_number_is_an_error_at_the_start(saved: Checkpoint, tmp_path: Path) -> None:
    run = copy_of(saved, tmp_path / "run")
    copied = shutil.copytree(run / "checkpoints" / "00000002", run / "checkpoints" / "00000009")
    config = replace(find_resume_source(run).config, total_agent_steps=10**4)
    with pytest.raises(ConfigurationError) as caught:
        anyio.run(Trainer(config, resume=run).run)
    told = " ".join(str(caught.value).split())
    assert "it holds 00000009 (and was written as epoch 2: a copy, it seems)" in told
    assert f"move {copied} elsewhere" in told
    shutil.rmtree(copied)
    anyio.run(Trainer(replace(config, total_agent_steps=300), resume=run).run)


def test_what_is_no_record_or_no_score_is_told_on_resume_and_nothing_is_lost(
    saved: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_of(saved, tmp_path / "run")
    metrics = run / "metrics.jsonl"
    records = metrics.read_text().splitlines()
    metrics.write_bytes(f"{records[0]}\n<<<<<<< HEAD\n[1]\n{records[1]}\n".encode() + b"\xff\xfe")
    attempt = saved.manifest["attempt"]
    for name, content in {
        "00000001": "nothing",
        "00000002": json.dumps({"attempt": attempt, "metrics": {"a": "b"}}),
    }.items():
        (run / "checkpoints" / name / "scores.json").write_text(content)
    config = replace(find_resume_source(run).config, total_agent_steps=300)
    anyio.run(Trainer(config, resume=run).run)
    assert f"{metrics}: lines that are no records (3) were moved to {metrics}.odd" in caplog.text
    assert Path(f"{metrics}.odd").read_bytes() == b"<<<<<<< HEAD\n[1]\n\xff\xfe\n"
    assert metrics.read_text().splitlines()[:2] == records
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == [1, 2, 3]
    for name, reason in {"00000001": "JSONDecodeError", "00000002": "the metric 'a' is 'b', not a number"}.items():
        (told,) = {one for one in caplog.messages if name in one and "scores.json is damaged" in one}
        assert reason in told


def test_a_damaged_checkpoint_in_a_store_is_told_with_the_cure(
    saved: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("obstore")
    from orchestrator.checkpoints.objects import Objects
    from orchestrator.checkpoints.remote import RemoteCheckpoints

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    address = "memory://damaged/runs/first"
    remote = RemoteCheckpoints(Objects(address))
    for path in CheckpointFolder(saved.path.parent).list():
        remote.upload(path, saved.path.parent.parent / "config.toml")
    keys = [one.key for one in remote.objects.list("checkpoints/00000002/")]
    (policy,) = (key for key in keys if key.endswith("/policy.safetensors"))
    remote.objects.put(policy, lambda: b"junk")
    with pytest.raises(CheckpointError, match=r"damaged.*; name another checkpoint: `orchestrator checkpoints verify`"):
        Trainer(resume=f"{address}/checkpoints/00000002")
    remote.objects.delete("checkpoints/00000002/manifest.json")
    assert find_resume_source(address).checkpoint.epoch == 1
    assert f"checkpoint {address}/checkpoints/00000002, which is newer, is passed over: it has no" in caplog.text
    remote.objects.put("checkpoints/00000001/manifest.json", lambda: b"{")
    with pytest.raises(CheckpointError, match="has no valid checkpoint; .*; name a checkpoint of another run"):
        Trainer(resume=address)


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
