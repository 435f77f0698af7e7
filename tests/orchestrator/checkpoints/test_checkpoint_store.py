"""Checkpoints in an object store: what is found there after a stop at any request, and what two uploaders do."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.checkpoints import (
    CheckpointError,
    CheckpointFolder,
    KeepLast,
    StoreUnavailable,
    find_checkpoint,
)
from orchestrator.checkpoints.find import as_address
from orchestrator.checkpoints.objects import Objects, address_problem
from orchestrator.checkpoints.remote import RemoteCheckpoints, find_remote, run_and_name
from tests.orchestrator.checkpoints.faulty_filesystem import MEMORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
POLICY = "policy.safetensors"
_numbers = itertools.count()


class Stop(BaseException):
    """The uploader's machine has lost its power."""


class StoppingObjects(Objects):
    """Stops at request `stop_at`: before it is done, or when it is done and nobody has heard of it yet."""

    def __init__(self, address: str, stop_at: int | None = None, *, done: bool = False) -> None:
        super().__init__(address)
        self.requests = 0
        self.stop_at = stop_at
        self.done = done

    def _request(self, doing: str, key: str, request: Callable[[], T]) -> T:
        self.requests += 1
        if self.requests == self.stop_at:
            if self.done:
                super()._request(doing, key, request)
            raise Stop
        return super()._request(doing, key, request)


@pytest.fixture
def address() -> str:
    """A store of this test's own."""
    return f"memory://test{next(_numbers)}/runs/first"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    return [commit(folder, epoch) for epoch in (1, 2, 3)]


def commit(folder: CheckpointFolder, epoch: int, extra: bytes = b"") -> Path:
    files = {POLICY: b"weights of %d" % epoch + extra, "moments": bytes(epoch)}
    return folder.commit(epoch=epoch, facts={"agent_step": epoch * 10}, files=files)


def restored(address: str) -> int:
    if not RemoteCheckpoints(Objects(address)).list():
        return 0
    checkpoint = find_checkpoint(address)
    assert checkpoint.read(POLICY).startswith(b"weights of %d" % checkpoint.epoch)
    return checkpoint.epoch


def keys(address: str) -> set[str]:
    return {listed.key for listed in Objects(address).list()}


def test_a_copy_has_everything_and_comes_back_on_a_machine_that_has_nothing(
    address: str, paths: list[Path], tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "run" / "config.toml").write_text("seed = 1\n")
    remote = RemoteCheckpoints(Objects(address))
    for path in paths:
        assert remote.upload(path, config=tmp_path / "run" / "config.toml") == f"{address}/checkpoints/{path.name}"
    assert remote.list() == [path.name for path in paths]
    found = find_checkpoint(address)
    original = find_checkpoint(paths[-1])
    changed = {"checksum"}
    assert {k: v for k, v in found.manifest.items() if k not in changed} == {
        k: v for k, v in original.manifest.items() if k not in changed
    }
    assert found.read(POLICY) == b"weights of 3"
    assert found.path.is_relative_to(cache)
    assert (found.path.parent.parent / "config.toml").read_text() == "seed = 1\n"
    assert find_checkpoint(f"{address}/checkpoints/00000002").epoch == 2
    assert find_checkpoint(f"{address}/checkpoints/").epoch == 3
    attempt = original.manifest["attempt"]
    assert {"checkpoints/00000003/manifest.json", f"checkpoints/00000003/{attempt}/moments"} <= keys(address)


def test_a_copy_here_is_used_again_unless_it_is_damaged(address: str, paths: list[Path]) -> None:
    RemoteCheckpoints(Objects(address)).upload(paths[0])
    first = find_checkpoint(address)
    inode = (first.path / POLICY).stat().st_ino
    assert (find_checkpoint(address).path / POLICY).stat().st_ino == inode
    (first.path / POLICY).write_bytes(b"weights of 9")
    assert find_checkpoint(address).read(POLICY) == b"weights of 1"


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True])
def test_a_stop_at_any_request_loses_no_announced_checkpoint(paths: list[Path], done: bool) -> None:
    def upload_all(objects: Objects) -> Iterator[int]:
        for epoch, path in enumerate(paths, start=1):
            RemoteCheckpoints(objects).upload(path)
            yield epoch
            RemoteCheckpoints(objects).prune(KeepLast(1))

    counting = StoppingObjects(f"memory://count{done}/run")
    list(upload_all(counting))
    for index in range(1, counting.requests + 1):
        address = f"memory://stop{done}{index}/run"
        announced = 0
        with pytest.raises(Stop):
            for announced in upload_all(StoppingObjects(address, index, done=done)):  # noqa: B007
                pass
        assert restored(address) >= announced, f"stopped at request {index}"
        for path in paths[announced:]:  # the uploader comes back
            RemoteCheckpoints(Objects(address)).upload(path)
        assert restored(address) == 3


@settings(max_examples=40, deadline=None)
@given(
    history=st.lists(
        st.tuples(st.integers(1, 12), st.booleans(), st.sampled_from(["upload", "again", "prune"])), max_size=12
    )
)
def test_whatever_happens_to_uploads_what_was_announced_can_be_restored(
    history: list[tuple[int, bool, str]],
) -> None:
    address = f"memory://history{next(_numbers)}/run"
    with tempfile.TemporaryDirectory(dir=MEMORY) as root, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", root)
        folder = CheckpointFolder(Path(root) / "checkpoints")
        announced = epoch = 0
        for stop_at, done, what in history:
            remote = RemoteCheckpoints(StoppingObjects(address, stop_at, done=done))
            try:
                if what == "prune":
                    remote.prune(KeepLast(1))
                else:
                    if what == "upload" or not epoch:
                        epoch += 1
                        commit(folder, epoch)
                    remote.upload(folder.list()[-1])
                    announced = epoch
            except Stop:
                pass
            assert restored(address) >= announced


def test_of_two_checkpoints_of_one_name_the_first_committed_wins(address: str, tmp_path: Path) -> None:
    first, second = (commit(CheckpointFolder(tmp_path / name), 1, name.encode()) for name in ("a", "b"))
    remote = RemoteCheckpoints(Objects(address))

    class Late(StoppingObjects):
        """Another uploader is quicker, between looking and committing."""

        def create(self, key: str, content: bytes) -> None:
            remote.upload(first)
            super().create(key, content)

    with pytest.raises(CheckpointError, match="is another checkpoint of that name"):
        RemoteCheckpoints(Late(address)).upload(second)
    with pytest.raises(CheckpointError, match="is another checkpoint of that name"):
        remote.upload(second)
    assert find_checkpoint(address).read(POLICY) == b"weights of 1a"
    assert len(keys(address)) == 3, "the loser leaves nothing"
    assert remote.upload(first) == f"{address}/checkpoints/00000001", "the same one again is no quarrel"


def test_damaged_copies_are_passed_over_loudly_and_named(
    address: str, paths: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    objects = Objects(address)
    remote = RemoteCheckpoints(objects)
    for path in paths:
        remote.upload(path)
    key = {name: f"checkpoints/{name}/{remote.open(name).manifest['attempt']}/{POLICY}" for name in remote.list()}
    objects.put(key["00000003"], lambda: b"weights of 4")
    objects.put(key["00000002"], lambda: b"weights of 2 and more")
    with caplog.at_level(logging.ERROR):
        assert find_checkpoint(address).epoch == 1
    assert "00000003 is passed over: policy.safetensors of" in caplog.text
    assert "has 21 bytes instead of 12" in caplog.text
    objects.delete(key["00000001"])
    with pytest.raises(CheckpointError, match=r"00000001/.*/policy.safetensors is missing"):
        remote.verify("00000001")


def test_a_damaged_checkpoint_is_not_uploaded(address: str, paths: list[Path]) -> None:
    os.truncate(paths[0] / POLICY, 3)
    with pytest.raises(CheckpointError, match="has 3 bytes"):
        RemoteCheckpoints(Objects(address)).upload(paths[0])
    assert not keys(address)


def test_retention_in_a_store_deletes_what_no_rule_wants(address: str, paths: list[Path]) -> None:
    remote = RemoteCheckpoints(Objects(address))
    for path in paths:
        remote.upload(path)
    assert remote.prune(KeepLast(2), dry_run=True) == ["00000001"]
    assert len(remote.list()) == 3
    assert remote.prune(KeepLast(2)) == ["00000001"]
    assert {key.split("/")[1] for key in keys(address) if "/" in key} == {"00000002", "00000003"}


def test_a_store_in_a_folder_can_be_read_in_place(tmp_path: Path, paths: list[Path]) -> None:
    address = (tmp_path / "a store" / "first").as_uri()
    remote = RemoteCheckpoints(Objects(address))
    for path in paths:
        remote.upload(path)
    assert find_checkpoint(address).epoch == 3
    assert find_checkpoint(tmp_path / "a store" / "first").read(POLICY) == b"weights of 3"
    assert find_checkpoint(paths[0].as_uri()).epoch == 1


def test_addresses_are_taken_apart_and_understood_as_paths_too() -> None:
    assert run_and_name("s3://b/runs/a/checkpoints/00000004/") == ("s3://b/runs/a", "00000004")
    assert run_and_name("s3://b/runs/a/checkpoints") == ("s3://b/runs/a", None)
    assert as_address(Path("s3://b/runs/a")) == "s3://b/runs/a"
    assert as_address(Path("file:///b/a")) == "file:///b/a"
    assert as_address("runs/a") is None


@pytest.mark.parametrize(
    "address",
    [
        "s3://key:SECRET@bucket/a",
        "az://account/c?sig=SECRET",
        "ftp://SECRET/a",
        "s3:///SECRET",
        "SECRET",
        "s3://b/../SECRET",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_repeating_it(address: str) -> None:
    problem = address_problem(address)
    assert problem is not None
    with pytest.raises(CheckpointError) as caught:
        Objects(address)
    assert "SECRET" not in problem + str(caught.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(
        CheckpointError, match=r"extra `remote` is needed: pip install 'async-rl-orchestrator\[remote\]'"
    ):
        find_remote("s3://bucket/run")


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ALLOW_HTTP": "true", "REGION": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    objects: Any = Objects("s3://bucket/run", request_seconds=1)
    with pytest.raises(StoreUnavailable, match=r"s3://bucket/run did not read config.toml: Generic S3 error") as caught:
        objects.get("config.toml")
    assert "SECRET" not in str(caught.value)
    objects.give_up()
    with pytest.raises(StoreUnavailable, match="gave up to read"):
        objects.get("config.toml")
