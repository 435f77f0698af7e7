"""Committing, listing, restoring, keeping and deleting on a real disk; and what is said when it cannot be done."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.checkpoints import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointFolder,
    KeepAny,
    KeepBest,
    KeepEvery,
    KeepLast,
    find_checkpoint,
    retention_of,
)
from orchestrator.checkpoints.filesystem import FileSystem
from orchestrator.checkpoints.manifest import in_folder
from orchestrator.config.settings import CheckpointsConfig

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

POLICY = "policy.safetensors"


def commit(folder: CheckpointFolder, epoch: int, **metrics: float) -> Path:
    return folder.commit(epoch=epoch, facts={"metrics": metrics}, files={POLICY: b"weights of %d" % epoch})


def names(folder: CheckpointFolder) -> list[str]:
    return [path.name.lstrip("0") for path in folder.list()]


def test_facts_files_and_lineage_come_back_as_they_were_given(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    moments = memoryview(bytearray(range(256)) * 40_000)
    facts = {"agent_step": 7, "policy_version": 3, "metrics": {"return": 1.5, "loss": float("nan")}, "own": {"a": [1]}}
    path = folder.commit(epoch=3, facts=facts, files={POLICY: b"", "moments": moments}, parent="00000002")
    checkpoint = find_checkpoint(path)
    assert checkpoint.read("moments") == bytes(moments)
    assert checkpoint.read(POLICY) == b""
    expected = {"epoch": 3, "agent_step": 7, "own": {"a": [1]}, "parent": "00000002", "format_version": 2}
    assert expected.items() <= checkpoint.manifest.items()
    assert checkpoint.manifest["metrics"] == {"return": 1.5, "loss": None}
    with pytest.raises(CheckpointError, match=r"has no file 'else'; it has policy\.safetensors, moments"):
        checkpoint.read("else")


def test_wrong_facts_and_names_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for facts, message in (
        ({"files": {}}, "may not be called files"),
        ({"object": object()}, "epoch 1 are not JSON"),
        ({"number": float("inf")}, "epoch 1 are not JSON"),
    ):
        with pytest.raises(CheckpointError, match=message):
            folder.commit(epoch=1, facts=facts, files={POLICY: b"x"})
    for name in ("../up", "/etc/passwd", "a/b", "", ".", "..", ".hidden", "manifest.json", "nul\0"):
        with pytest.raises(CheckpointError, match="cannot be the name of a file"):
            folder.commit(epoch=1, facts={}, files={name: b"x"})
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# What stays.


def test_rules_of_retention_add_up(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, retention=KeepAny((KeepLast(2), KeepBest(2, "return"), KeepEvery(4))))
    for epoch, score in enumerate([1.0, 9.0, 2.0, 3.0, float("nan"), 8.0, 4.0, 5.0, 0.0, 7.0, 6.0], start=1):
        commit(folder, epoch, **{"return": score} if epoch != 3 else {})
    assert names(folder) == ["2", "4", "6", "8", "10", "11"]


def test_the_best_can_be_the_smallest_and_the_newer_of_equal_ones(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, retention=KeepBest(1, "loss", "min"))
    for epoch, loss in enumerate([3.0, 1.0, 1.0, 2.0], start=1):
        commit(folder, epoch, loss=loss)
    assert names(folder) == ["3", "4"], "the best, and the newest always"


def test_the_configuration_says_which_rules_hold() -> None:
    config = CheckpointsConfig(keep=2, keep_best=1, best_metric="loss", best_mode="min", keep_every=10)
    assert retention_of(config) == KeepAny((KeepLast(2), KeepBest(1, "loss", "min"), KeepEvery(10)))


def test_nothing_is_deleted_before_the_next_commit_and_what_is_protected_never(tmp_path: Path) -> None:
    everything = CheckpointFolder(tmp_path)
    source, *_ = [commit(everything, epoch) for epoch in (1, 2, 3)]
    folder = CheckpointFolder(tmp_path, retention=KeepLast(1), protect=[source])
    assert names(folder) == ["1", "2", "3"]
    commit(folder, 4)
    assert names(folder) == ["1", "4"]


def test_a_checkpoint_that_another_process_holds_stays_until_that_process_is_killed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, retention=KeepLast(1))
    path = commit(folder, 1)
    script = f"""
        import pathlib, time
        from orchestrator.checkpoints import CheckpointFolder
        path = pathlib.Path({str(path)!r})
        with CheckpointFolder(path.parent).hold(path):
            print("held", flush=True)
            time.sleep(600)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        commit(folder, 2)
        assert names(folder) == ["1", "2"]
        assert find_checkpoint(path).read(POLICY) == b"weights of 1"
    finally:
        holder.kill()
        holder.communicate()
    commit(folder, 3)
    assert names(folder) == ["3"]
    with pytest.raises(CheckpointError, match="is no checkpoint"), folder.hold(path):
        pass


def test_remains_are_swept_by_age(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    old, young, gone, aside = (
        tmp_path / name for name in (".writing-1", ".writing-2", "00000007", ".damaged-00000001")
    )
    for path in (old, young, gone, aside):
        path.mkdir()
        (path / POLICY).write_bytes(b"half")
    long_ago = time.time() - 7200
    for path in (old, gone, aside):
        os.utime(path, (long_ago, long_ago))
    commit(folder, 8)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", young.name, aside.name, "00000008"}


def test_a_run_that_goes_back_moves_what_came_later_aside(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    first = commit(folder, 1)
    commit(folder, 5)
    with pytest.raises(CheckpointError, match="holds 00000005, of a later epoch than 2"):
        commit(folder, 2)
    (aside,) = folder.rewind(first)
    assert (aside / POLICY).read_bytes() == b"weights of 5"
    commit(folder, 2)
    assert folder.newest_valid().epoch == 2


def test_a_reader_always_finds_a_checkpoint_while_a_run_commits_and_deletes(tmp_path: Path) -> None:
    commit(CheckpointFolder(tmp_path), 1)
    script = f"""
        import itertools, pathlib
        from orchestrator.checkpoints import CheckpointFolder, KeepLast
        folder = CheckpointFolder(pathlib.Path({str(tmp_path)!r}), retention=KeepLast(1))
        for epoch in itertools.count(2):
            folder.commit(epoch=epoch, facts={{}}, files={{{POLICY!r}: b"weights of %d" % epoch}})
    """
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        epoch = 1
        while epoch < 20:
            assert run.poll() is None
            found = find_checkpoint(tmp_path).epoch
            assert found >= epoch
            epoch = found
    finally:
        run.kill()
        run.wait()
    found = CheckpointFolder(tmp_path).newest_valid()
    assert found.epoch >= epoch, "also after the run was killed"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".damaged")]


# Two runs.


def test_a_second_run_in_one_folder_is_told_who_is_there(tmp_path: Path) -> None:
    first, second = CheckpointFolder(tmp_path), CheckpointFolder(tmp_path)
    with first.claim():
        commit(first, 1)
        with pytest.raises(CheckpointError, match=rf"another run writes .* \(process {os.getpid()} on"):
            commit(second, 2)
        with pytest.raises(CheckpointError, match="another run writes"), second.claim():
            pass
        assert second.newest_valid().epoch == 1, "reading needs no claim"
    commit(second, 2)


# What is damaged.


def test_the_newest_valid_one_is_found_and_damaged_ones_are_moved_aside_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    paths = {epoch: commit(folder, epoch) for epoch in range(1, 8)}
    content = bytearray((paths[7] / POLICY).read_bytes())
    content[3] ^= 16
    (paths[7] / POLICY).write_bytes(content)  # a flipped bit
    os.truncate(paths[6] / POLICY, 5)
    (paths[5] / POLICY).unlink()
    (paths[4] / "manifest.json").write_text("{")
    shutil.move(paths[3] / POLICY, tmp_path / "secret")
    (paths[3] / POLICY).symlink_to(tmp_path / "secret")
    (paths[2] / POLICY).unlink()
    os.mkfifo(paths[2] / POLICY)
    with caplog.at_level(logging.ERROR):
        assert find_checkpoint(tmp_path).path == paths[1]
    for reason in (
        "its hash is not",
        "has 5 bytes instead of 12",
        "is missing",
        "JSON",
        "is a link",
        "no ordinary file",
    ):
        assert reason in caplog.text
    assert names(folder) == ["1"]
    aside = sorted(path.name[:17] for path in folder.path.iterdir() if path.name.startswith(".damaged-"))
    assert aside == [f".damaged-{epoch:08d}" for epoch in range(2, 8)], "none is deleted"
    os.truncate(paths[1] / POLICY, 0)
    with pytest.raises(CheckpointError, match=r"no valid checkpoint; .*0 bytes instead of 12"):
        folder.newest_valid()


def test_no_bit_of_a_checkpoint_can_flip_unnoticed(tmp_path: Path) -> None:
    path = commit(CheckpointFolder(tmp_path), 1, score=1.25)
    original = dict(find_checkpoint(path).manifest)
    files = list(path.iterdir())
    assert len(files) >= 2
    for file in files:
        content = file.read_bytes()
        assert content
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            try:
                found = find_checkpoint(path)
            except CheckpointError:
                continue
            assert found.manifest == original, f"{file.name}, byte {place}"  # only the white space differs
            assert file.name == "manifest.json"
        file.write_bytes(content)


def test_what_changes_after_it_was_found_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    checkpoint = find_checkpoint(commit(CheckpointFolder(tmp_path), 1))
    (checkpoint.path / POLICY).write_bytes(b"weights of 2")
    with pytest.raises(CheckpointDamaged, match="its hash is not what the manifest says"):
        checkpoint.read(POLICY)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../secret", "..", "", "a\\..\\b", "manifest.json"]
)
def test_a_manifest_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"")
    path = commit(CheckpointFolder(tmp_path / "checkpoints"), 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {name: {"bytes": 0, "sha256": ""}}
    (path / "manifest.json").write_bytes(in_folder(manifest, None))
    with pytest.raises(CheckpointDamaged, match="names a file outside of the checkpoint"):
        find_checkpoint(path)


def test_a_folder_in_a_manifest_cannot_lead_outside_either(tmp_path: Path) -> None:
    path = commit(CheckpointFolder(tmp_path / "checkpoints"), 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_bytes(in_folder(manifest, ".."))
    with pytest.raises(CheckpointDamaged, match="outside of the checkpoint: '..'"):
        find_checkpoint(path)


# Other versions.


def test_a_checkpoint_of_the_future_is_named_and_neither_skipped_nor_moved(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    commit(folder, 1)
    path = commit(folder, 2)
    manifest = json.loads((path / "manifest.json").read_text()) | {"format_version": 3}
    (path / "manifest.json").write_text(json.dumps(manifest))
    for find in (folder.newest_valid, lambda: find_checkpoint(path)):
        with pytest.raises(CheckpointError, match="format version 3; this release reads 2"):
            find()
    assert names(folder) == ["1", "2"]


def test_nothing_of_a_checkpoint_is_unpickled(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = CheckpointFolder(tmp_path / "c").commit(epoch=1, facts={}, files={POLICY: pickle.dumps(Trap())})
    from torch import nn

    with pytest.raises(Exception, match=r"(?i)header"):
        find_checkpoint(path).load_into(nn.Linear(1, 1))
    assert not (tmp_path / "sprung").exists()


# What the disk refuses.


class Refusing(FileSystem):
    def __init__(self, error: int) -> None:
        self.error = error

    def write(self, path: Path, content: Any) -> tuple[int, str]:
        raise OSError(self.error, os.strerror(self.error), str(path))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_is_named_and_what_was_there_stays(tmp_path: Path, error: int) -> None:
    commit(CheckpointFolder(tmp_path), 1)
    folder = CheckpointFolder(tmp_path, files=Refusing(error))
    with pytest.raises(CheckpointError, match=f"epoch 2 cannot be written to .*: {os.strerror(error)}"):
        commit(folder, 2)
    assert folder.newest_valid().epoch == 1
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "00000001"}


@contextmanager
def mounted(path: Path, options: str) -> Generator[None]:
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=256k"):
        folder = CheckpointFolder(tmp_path / "small" / "checkpoints")
        commit(folder, 1)
        with pytest.raises(CheckpointError, match="epoch 2 cannot be written to .*: No space left on device"):
            folder.commit(epoch=2, facts={}, files={POLICY: bytes(10**6)})
        assert folder.newest_valid().epoch == 1
        commit(folder, 3)
        assert names(folder) == ["1", "3"]


def test_a_folder_that_can_only_be_read(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=256k"):
        folder = CheckpointFolder(tmp_path / "small" / "checkpoints")
        _, damaged = [commit(folder, epoch) for epoch in (1, 2)]
        os.truncate(damaged / POLICY, 1)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "small"], check=True)
        assert folder.newest_valid().epoch == 1, "what cannot be moved aside is passed over"
        with pytest.raises(CheckpointError, match="cannot be written to .*: Read-only file system; choose another"):
            commit(folder, 3)
