"""Uploading to and restoring from a real S3 server that fails, hangs, and sees its client killed."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import pytest

from orchestrator.checkpoints import CheckpointError, CheckpointFolder, KeepLast, StoreUnavailable, find_checkpoint
from orchestrator.checkpoints.objects import Objects
from orchestrator.checkpoints.remote import RemoteCheckpoints
from tests.orchestrator.checkpoints.object_store_server import ObjectStoreServer, object_store_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

POLICY = "policy.safetensors"
ADDRESS = "s3://bucket/runs/first"
_buckets = itertools.count()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectStoreServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "an empty machine"))
    with object_store_server(monkeypatch, f"bucket{next(_buckets)}") as server:  # moto's state is the process's
        yield server


@pytest.fixture
def address(server: ObjectStoreServer) -> str:
    return f"s3:/{server.seen[0][1]}/runs/first"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    return [
        folder.commit(epoch=epoch, facts={}, files={POLICY: b"weights of %d" % epoch, "moments": bytes(epoch)})
        for epoch in (1, 2)
    ]


def remote(address: str, request_seconds: float = 30.0) -> RemoteCheckpoints:
    return RemoteCheckpoints(Objects(address, request_seconds=request_seconds))


def test_a_checkpoint_goes_to_s3_and_comes_back_to_an_empty_machine(
    server: ObjectStoreServer, address: str, paths: list[Path]
) -> None:
    for path in paths:
        assert remote(address).upload(path) == f"{address}/checkpoints/{path.name}"
    assert not [seen for seen in server.seen if seen[0] == "POST"], "small files take one request each"
    found = find_checkpoint(address)
    assert (found.epoch, found.read(POLICY), found.read("moments")) == (2, b"weights of 2", bytes(2))
    assert find_checkpoint(f"{address}/checkpoints/00000001").epoch == 1
    assert remote(address).prune(KeepLast(1)) == ["00000001"]
    assert remote(address).list() == ["00000002"]
    with pytest.raises(CheckpointError, match="00000001 is not there"):
        find_checkpoint(f"{address}/checkpoints/00000001")


def test_a_large_file_goes_in_parts_and_comes_back_in_ranges(address: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4 * 20_000  # 20 MB
    path = CheckpointFolder(tmp_path / "run").commit(epoch=1, facts={}, files={POLICY: content})
    remote(address).upload(path)
    assert find_checkpoint(address).read(POLICY) == content


def test_a_large_file_that_is_damaged_is_not_uploaded(address: str, tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path / "run").commit(epoch=1, facts={}, files={POLICY: bytes(20_000_000)})
    with (path / POLICY).open("r+b") as file:
        file.seek(19_000_000)
        file.write(b"1")
    with pytest.raises(CheckpointError, match="its hash is not what the manifest says"):
        remote(address).upload(path)
    assert not Objects(address).list()


def test_the_server_creates_a_manifest_only_if_there_is_none(address: str, paths: list[Path], tmp_path: Path) -> None:
    other = CheckpointFolder(tmp_path / "other").commit(epoch=1, facts={}, files={POLICY: b"another"})
    remote(address).upload(paths[0])

    class Blind(Objects):
        """Has looked before the other has committed."""

        looked = False

        def get(self, key: str):
            if not self.looked and key.endswith("manifest.json"):
                self.looked = True
                return None
            return super().get(key)

    with pytest.raises(CheckpointError, match="another checkpoint of that name"):
        RemoteCheckpoints(Blind(address)).upload(other)


@pytest.mark.parametrize("status", [500, 503])
def test_requests_that_fail_are_repeated(
    server: ObjectStoreServer, address: str, paths: list[Path], status: int
) -> None:
    tried: dict[tuple[str, str], int] = {}

    def fail_twice(method: str, path: str) -> int | None:
        tried[method, path] = tried.get((method, path), 0) + 1
        return status if tried[method, path] <= 2 else None

    server.on_request = fail_twice
    remote(address).upload(paths[0])
    assert find_checkpoint(address).epoch == 1
    assert sum(count >= 3 for count in tried.values()) >= 8


def test_a_server_that_never_answers_is_given_up_after_bounded_tries(
    server: ObjectStoreServer, address: str, paths: list[Path]
) -> None:
    remote(address).upload(paths[0])
    released = threading.Event()
    server.on_request = lambda method, path: released.wait(60) and None
    objects = Objects(address, request_seconds=0.2)
    try:
        with pytest.raises(StoreUnavailable, match="did not read checkpoints/00000002/manifest.json"):
            RemoteCheckpoints(objects).upload(paths[1])
    finally:
        released.set()
    server.on_request = lambda method, path: None
    assert find_checkpoint(address).epoch == 1
    remote(address).upload(paths[1])
    assert find_checkpoint(address).epoch == 2


def test_an_answer_that_is_lost_after_the_commit_is_no_quarrel_with_oneself(
    server: ObjectStoreServer, address: str, paths: list[Path]
) -> None:
    lost: list[str] = []
    server_application = server._application

    def lose_the_answer(environment, start_response):
        answer = list(server_application(environment, start_response if lost else lambda *_, **__: None))
        if environment["REQUEST_METHOD"] == "PUT" and environment["PATH_INFO"].endswith("manifest.json") and not lost:
            lost.append(environment["PATH_INFO"])
            start_response("500 Trouble", [("Content-Length", "0")])
            return [b""]
        return answer

    server._application = lambda environment, start_response: (  # type: ignore[assignment]
        lose_the_answer(environment, start_response)
        if environment["REQUEST_METHOD"] == "PUT" and environment["PATH_INFO"].endswith("manifest.json")
        else server_application(environment, start_response)
    )
    assert remote(address).upload(paths[0]).endswith("00000001")
    assert lost
    assert find_checkpoint(address).epoch == 1


@pytest.mark.parametrize("ending", [POLICY, "moments", "manifest.json"])
def test_an_uploader_that_is_killed_in_the_middle_leaves_the_checkpoint_before_it(
    server: ObjectStoreServer, address: str, paths: list[Path], ending: str
) -> None:
    remote(address).upload(paths[0])
    reached, released = threading.Event(), threading.Event()

    def hang(method: str, path: str) -> int | None:
        if method == "PUT" and path.endswith(ending):
            reached.set()
            released.wait(60)
            return 500
        return None

    server.on_request = hang
    script = f"""
        import pathlib
        from orchestrator.checkpoints.objects import Objects
        from orchestrator.checkpoints.remote import RemoteCheckpoints
        RemoteCheckpoints(Objects({address!r})).upload(pathlib.Path({str(paths[1])!r}))
    """
    uploader = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        assert reached.wait(60)
    finally:
        uploader.kill()
        uploader.wait()
        released.set()
    server.on_request = lambda method, path: None
    assert find_checkpoint(address).epoch == 1
    remote(address).upload(paths[1])
    assert find_checkpoint(address).read(POLICY) == b"weights of 2"


def test_rejected_credentials_are_named_at_once_and_not_repeated(
    server: ObjectStoreServer, address: str, paths: list[Path]
) -> None:
    server.on_request = lambda method, path: 403
    before = len(server.seen)
    with pytest.raises(CheckpointError, match="does not let us read .*: check the credentials") as caught:
        remote(address).upload(paths[0])
    assert not isinstance(caught.value, StoreUnavailable)
    assert "TOP-SECRET" not in str(caught.value)
    assert len(server.seen) == before + 1
