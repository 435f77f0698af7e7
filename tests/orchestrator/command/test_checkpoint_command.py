"""`orchestrator checkpoints ...`, as its user sees it."""

from __future__ import annotations

import itertools
import json
import os
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save

from orchestrator.checkpoints import CheckpointFolder
from orchestrator.checkpoints.objects import Objects
from orchestrator.checkpoints.remote import RemoteCheckpoints
from orchestrator.command.cli import run

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([0.5, -0.5])}
_numbers = itertools.count()


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    for epoch in (1, 2, 3):
        files = {"policy.safetensors": save(WEIGHTS), "optimizer.safetensors": b"moments"}
        facts = {"agent_step": 100 * epoch, "metrics": {"return": -float(epoch)}}
        folder.commit(epoch=epoch, facts=facts, files=files)
    return folder


@pytest.fixture(params=["folder", "run", "store"])
def where(request: pytest.FixtureRequest, folder: CheckpointFolder) -> str:
    """The same checkpoints, named in the ways there are."""
    if request.param != "store":
        return str(folder.path if request.param == "folder" else folder.path.parent)
    address = f"memory://command{next(_numbers)}/run"
    for path in folder.list():
        RemoteCheckpoints(Objects(address)).upload(path)
    return address


def damage(where: str, folder: CheckpointFolder, name: str) -> None:
    if where.startswith("memory:"):
        objects = Objects(where)
        attempt = RemoteCheckpoints(objects).open(name).manifest["attempt"]
        objects.put(f"checkpoints/{name}/{attempt}/optimizer.safetensors", lambda: b"moment")
    else:
        os.truncate(folder.path / name / "optimizer.safetensors", 6)


def test_list_shows_what_is_there(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoints", "list", where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in lines] == [
        [f"{epoch:08d}", "epoch", str(epoch), "steps", str(100 * epoch)] for epoch in (1, 2, 3)
    ]
    assert run(["checkpoints", "list", where, "--json"]) == 0
    facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["metrics"]["return"] for entry in facts] == [-1.0, -2.0, -3.0]


def test_verify_tells_good_from_bad(where: str, folder: CheckpointFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoints", "verify", where]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{epoch:08d}: ok" for epoch in (1, 2, 3)]
    damage(where, folder, "00000002")
    assert run(["checkpoints", "verify", where]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["00000001: ok", "00000003: ok"]
    assert "has 6 bytes instead of 7" in captured.err


def test_show_prints_a_manifest(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoints", "show", where]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["epoch"] == 3
    assert set(manifest["files"]) == {"policy.safetensors", "optimizer.safetensors"}
    one = f"{where}/00000002" if where.endswith("checkpoints") else f"{where}/checkpoints/00000002"
    assert run(["checkpoints", "show", one]) == 0
    assert json.loads(capsys.readouterr().out)["epoch"] == 2


def test_prune_deletes_what_no_rule_keeps(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ["--keep", "1", "--keep-best", "1", "--best-metric", "return"]
    assert run(["checkpoints", "prune", where, *rules, "--dry-run"]) == 0
    kept = "00000003: kept\n1"
    assert capsys.readouterr().out == f"00000001: kept\n00000002: would be deleted\n{kept} would be deleted, 2 kept\n"
    assert run(["checkpoints", "prune", where, *rules]) == 0
    assert capsys.readouterr().out == f"00000001: kept\n00000002: deleted\n{kept} deleted, 2 kept\n"
    assert run(["checkpoints", "prune", where, *rules]) == 0
    assert capsys.readouterr().out == "00000001: kept\n00000003: kept\n0 deleted, 2 kept\n"
    assert run(["checkpoints", "list", where]) == 0
    assert [line[:8] for line in capsys.readouterr().out.splitlines()] == ["00000001", "00000003"]


@pytest.mark.parametrize("also", [[], ["--dry-run"], ["--keep-every", "2"]])
def test_prune_deletes_nothing_for_a_metric_that_no_checkpoint_has(
    where: str, also: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rules = ["--keep", "1", "--keep-best", "1", "--best-metric", "retrun", *also]
    assert run(["checkpoints", "prune", where, *rules]) == 2
    error = capsys.readouterr().err
    assert "no checkpoint of" in error
    assert "did you mean return?" in error
    assert run(["checkpoints", "prune", where, "--keep", "1", "--best-metric", "return", *also]) == 2
    assert "--best-metric return needs --keep-best" in capsys.readouterr().err
    assert run(["checkpoints", "list", where]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_prune_never_deletes_the_newest_valid_one(
    where: str, folder: CheckpointFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("00000002", "00000003"):
        damage(where, folder, name)
    assert run(["checkpoints", "prune", where, "--keep", "1"]) == 0
    assert "00000002: deleted\n" in capsys.readouterr().out
    assert run(["checkpoints", "verify", where]) == 1
    assert capsys.readouterr().out == "00000001: ok\n"


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_export_writes_weights_that_plain_libraries_read(
    where: str, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = tmp_path / f"weights.{suffix}"
    assert run(["checkpoints", "export", where, str(output)]) == 0
    loaded = load_file(output) if suffix == "safetensors" else torch.load(output, weights_only=True)
    assert loaded.keys() == WEIGHTS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in WEIGHTS.items())
    assert "00000003, epoch 3" in capsys.readouterr().out
    assert run(["checkpoints", "export", where, str(output)]) == 2, "nothing is overwritten"
    assert "exists, and is left as it is: name another file, or delete it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "nowhere"], "nowhere does not exist"),
        (["list", "memory://nothing/run"], "memory://nothing/run has no checkpoints"),
        (["show", "s3://key:SECRET@bucket/run"], "without credentials"),
        (["prune", "nowhere", "--keep", "0"], "--keep must be at least 1"),
        (["prune", "nowhere", "--keep", "1", "--keep-best", "1"], "needs --best-metric"),
        (["export", "nowhere", "weights.zip"], "must end in .safetensors or .pt"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["checkpoints", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "SECRET" not in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_place_without_checkpoints_is_told_what_is_near_and_inside(
    folder: CheckpointFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = folder.path.parent
    for wrong, cure in (
        (folder.path / "2", f"{folder.path}/2 does not exist: did you mean {folder.path}/00000002?"),
        (run_folder.with_name("rum"), f"does not exist: did you mean {run_folder}?"),
        (run_folder.parent, f"nor a run with checkpoints in it; name one of the runs in it: {run_folder}\n"),
    ):
        for words in (["checkpoints", "show"], ["checkpoints", "list"], ["train", "--resume"]):
            assert run([*words, str(wrong)]) == 2
            assert cure in capsys.readouterr().err


def test_prune_neither_disturbs_a_run_nor_takes_one_checkpoint_for_all(
    folder: CheckpointFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["checkpoints", "prune", str(folder.list()[0]), "--keep", "1"]) == 2
    assert "not one of its checkpoints" in capsys.readouterr().err
    with folder.claim():
        assert run(["checkpoints", "prune", str(folder.path), "--keep", "1"]) == 2
    assert "another run writes its checkpoints" in capsys.readouterr().err
    assert len(folder.list()) == 3
