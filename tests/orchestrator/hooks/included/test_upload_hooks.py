"""Copying checkpoints away while the training goes on: to a real S3 server, good and bad, and to W&B."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from orchestrator import CheckpointsConfig, ConfigurationError, Trainer
from orchestrator.checkpoints import CheckpointFolder, KeepLast, find_checkpoint
from orchestrator.checks.configuration import check_config
from orchestrator.command.evaluation import evaluate_checkpoint
from orchestrator.hooks.hook import StateUpdate
from orchestrator.hooks.included.upload import UploadHook
from orchestrator.hooks.included.wandb_artifacts import WandbCheckpointHook
from orchestrator.snapshots.resume import find_resume_source
from state.trainer_state import TrainerState
from tests.orchestrator.checkpoints.object_store_server import ObjectStoreServer, object_store_server
from tests.orchestrator.hooks.driving import AtCommit, AtEpochEnd, publish_epochs, running, until
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

_buckets = itertools.count()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectStoreServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "an empty machine"))
    with object_store_server(monkeypatch, f"hooks{next(_buckets)}") as server:
        yield server


@pytest.fixture
def address(server: ObjectStoreServer) -> str:
    return f"s3:/{server.seen[0][1]}/runs"


class Saver(AtEpochEnd):
    """Commits a checkpoint of every epoch, as the checkpoint hook does."""

    def __init__(self, folder: CheckpointFolder) -> None:
        super().__init__("saver", act=self.save, max_lag=9)
        self.folder = folder

    async def save(self, state: TrainerState) -> StateUpdate:
        def commit() -> Path:
            return self.folder.commit(epoch=state.epoch, facts={}, files={"policy.safetensors": b"%d" % state.epoch})

        return StateUpdate(latest_checkpoint_uri=(await anyio.to_thread.run_sync(commit)).as_uri())


async def test_a_run_leaves_its_checkpoints_in_the_store(address: str, tmp_path: Path) -> None:
    checkpoints = CheckpointsConfig(every=2, keep=2, upload=address)
    config = small_config(epochs=4, run_dir=tmp_path / "first run", checkpoints=checkpoints)
    final = await Trainer(config).run()
    found = await anyio.to_thread.run_sync(find_checkpoint, f"{address}/first%20run")
    local = CheckpointFolder(tmp_path / "first run" / "checkpoints").newest_valid()
    assert final.latest_checkpoint_uri == f"{address}/first%20run/checkpoints/{local.path.name}"
    assert found.epoch == local.epoch == final.epoch
    assert found.read("policy.safetensors") == local.read("policy.safetensors")
    assert (found.path.parent.parent / "config.toml").read_text() == (tmp_path / "first run/config.toml").read_text()
    assert "SECRET" not in (tmp_path / "first run/config.toml").read_text()


async def test_a_run_goes_on_and_is_evaluated_from_the_store_where_nothing_else_is_left(
    address: str, tmp_path: Path
) -> None:
    config = small_config(epochs=2, run_dir=tmp_path / "run", checkpoints=CheckpointsConfig(every=1, upload=address))
    ended = await Trainer(config).run()
    shutil.rmtree(tmp_path / "run")
    report = await anyio.to_thread.run_sync(partial(evaluate_checkpoint, Path(f"{address}/run"), episodes=1))
    assert report["epoch"] == ended.epoch
    source = await anyio.to_thread.run_sync(find_resume_source, f"{address}/run")
    further = dataclasses.replace(
        source.config, run_dir=tmp_path / "further", total_agent_steps=2 * config.total_agent_steps
    )
    final = await Trainer(further, resume=source).run()
    assert final.epoch > ended.epoch
    assert final.latest_checkpoint_uri == f"{address}/further/checkpoints/{final.epoch:08d}"


async def test_a_dead_store_costs_an_error_in_the_log_and_nothing_else(
    address: str, server: ObjectStoreServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.on_request = lambda method, path: 403
    checkpoints = CheckpointsConfig(every=1, keep=0, upload=address)
    config = small_config(epochs=3, run_dir=tmp_path / "run", checkpoints=checkpoints)
    final = await Trainer(config).run()
    newest = CheckpointFolder(tmp_path / "run" / "checkpoints").newest_valid()
    assert newest.epoch == final.epoch
    assert final.latest_checkpoint_uri == newest.path.as_uri()
    assert "hook 'upload' failed to handle on_checkpoint_committed" in caplog.text
    assert "TOP-SECRET" not in caplog.text


@pytest.mark.parametrize("kind", [UploadHook, WandbCheckpointHook])
async def test_it_is_known_how_many_checkpoints_were_not_copied_and_why(
    kind: type[UploadHook | WandbCheckpointHook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"00000001", "00000002"}

    def copy(self: object, path: Path) -> str:
        if path.name in broken:
            raise ConnectionError(f"no way to {path.name}")
        return f"memory://elsewhere/{path.name}"

    monkeypatch.setattr("orchestrator.hooks.included.upload._Copying.copy", copy)
    monkeypatch.setattr(WandbCheckpointHook, "_upload", copy)
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    hook = kind(folder.path, "project")
    saver = Saver(folder)
    for newest in (1, 2, 3, 4):
        async with running(saver, hook) as engine:
            for epoch in range(1, newest + 1):
                await publish_epochs(engine, epoch)
                await engine.drain(20)
        problem = hook.copies.problem()
        assert problem is not None
        count = f"{max(0, newest - 2)} of {newest} checkpoint{' was' if newest == 1 else 's were'} copied"
        assert problem == f"{count} to {hook.copies.place}: no way to {min(newest, 2):08d}"
        shutil.rmtree(folder.path)
    broken.clear()
    async with running(saver, hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(20)
    assert hook.copies.problem() is None, "of an earlier run"


async def test_behind_a_slow_store_the_newest_wins_and_what_is_being_copied_is_not_deleted(
    address: str, server: ObjectStoreServer, tmp_path: Path
) -> None:
    reached, released = threading.Event(), threading.Event()

    def wait_for_the_first_file(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(".safetensors"):
            reached.set()
            released.wait(60)

    server.on_request = wait_for_the_first_file
    folder = CheckpointFolder(tmp_path / "checkpoints", retention=KeepLast(1))
    saver, upload, watcher = Saver(folder), UploadHook(folder.path, f"{address}/slow"), AtCommit("watcher", max_lag=9)
    try:
        async with running(saver, upload, watcher) as engine:
            await publish_epochs(engine, 1)
            await until(reached.is_set)
            await publish_epochs(engine, 2, 3, 4)
            await until(lambda: saver.epochs == [1, 2, 3, 4])
            assert [path.name for path in folder.list()] == ["00000001", "00000004"], "1 is held"
            released.set()
            await engine.drain(20)
            assert engine.statistics().hooks["upload"].coalesced == 2
    finally:
        released.set()
    copies = [f"{address}/slow/checkpoints/{name}" for name in ("00000001", "00000004")]
    told = [state.latest_checkpoint_uri for state in watcher.states]
    assert [uri for uri in told if uri in copies] == copies
    assert (await anyio.to_thread.run_sync(find_checkpoint, f"{address}/slow")).epoch == 4


@contextmanager
def hanging(server: ObjectStoreServer) -> Generator[threading.Event]:
    """A store that answers no request until the context is left; the event is set by the first."""
    reached, released = threading.Event(), threading.Event()

    def hang(method: str, path: str) -> None:
        reached.set()
        released.wait()

    server.on_request = hang
    try:
        yield reached
    finally:
        released.set()


async def test_a_run_that_is_cancelled_does_not_wait_for_a_store_that_hangs(
    address: str, server: ObjectStoreServer, tmp_path: Path
) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    with hanging(server) as reached:
        async with running(Saver(folder), UploadHook(folder.path, address)) as engine:  # which has a deadline
            await publish_epochs(engine, 1)
            await until(reached.is_set)


async def test_a_run_after_one_that_was_cancelled_while_its_upload_hung_uploads_its_own(
    address: str, server: ObjectStoreServer, tmp_path: Path
) -> None:
    checkpoints = CheckpointsConfig(every=1, upload=address)
    trainer = Trainer(small_config(epochs=3, run_dir=tmp_path / "run", checkpoints=checkpoints))
    with hanging(server) as reached:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trainer.run)
            await until(reached.is_set)
            tasks.cancel_scope.cancel()
        server.on_request = lambda method, path: None
        shutil.rmtree(tmp_path / "run")
        with anyio.fail_after(60):
            final = await trainer.run()  # while the first run's request still hangs
    assert final.latest_checkpoint_uri is not None
    assert final.latest_checkpoint_uri.startswith(f"{address}/run/checkpoints/")


async def test_a_run_after_one_that_uploaded_nothing_uploads(address: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    upload = UploadHook(folder.path, f"{address}/later")
    async with running(upload) as engine:
        await publish_epochs(engine, 1)
    async with running(Saver(folder), upload) as engine:
        await publish_epochs(engine, 1)
        assert await engine.drain(20) == ()
        assert engine.statistics().hooks["upload"].handled == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_copying_never_blocks_the_event_loop(tmp_path: Path) -> None:
    blockbuster = pytest.importorskip("blockbuster")
    folder = CheckpointFolder(tmp_path / "checkpoints")
    with blockbuster.blockbuster_ctx():
        async with running(Saver(folder), UploadHook(folder.path, (tmp_path / "store").as_uri())) as engine:
            await publish_epochs(engine, 1)
            await engine.drain(20)
            assert engine.statistics().hooks["upload"].handled == 1
    assert find_checkpoint(tmp_path / "store").epoch == 1


async def test_the_newest_is_tried_again_at_the_end_if_its_upload_failed(
    address: str, server: ObjectStoreServer, tmp_path: Path
) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    server.on_request = lambda method, path: 403
    async with running(Saver(folder), UploadHook(folder.path, f"{address}/again")) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(20)
        server.on_request = lambda method, path: None
        await publish_epochs(engine, 1, event="on_training_end")
        await engine.drain(20)
        state = engine.fold(TrainerState())
    assert state.latest_checkpoint_uri == f"{address}/again/checkpoints/00000001"


async def test_a_checkpoint_that_is_gone_before_its_turn_is_no_failure(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    upload = UploadHook(folder.path, f"{address}/gone")
    gone = TrainerState(latest_checkpoint_uri=(folder.path / "00000001").as_uri())
    elsewhere = TrainerState(latest_checkpoint_uri="file:///elsewhere/checkpoints/00000001")
    with caplog.at_level(logging.WARNING):
        async with running(upload) as engine:
            for state in (gone, elsewhere, TrainerState(latest_checkpoint_uri="s3://a/b")):
                await engine.publish("on_checkpoint_committed", state)
                await engine.drain(20)
            assert engine.statistics().hooks["upload"].failed == 0
    assert not caplog.text


async def test_artifacts_are_made_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints", retention=KeepLast(1))
    async with running(Saver(folder), WandbCheckpointHook(folder.path, "team/project"), grace=60.0) as engine:
        for epoch in (1, 2):
            await publish_epochs(engine, epoch)
            await engine.drain(20)
        state = engine.fold(TrainerState())
    assert state.latest_wandb_uri is not None
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert state.latest_wandb_uri == offline.as_uri()
    (record,) = offline.glob("*.wandb")
    for alias in (b"epoch-1", b"epoch-2"):
        await until(lambda alias=alias: alias in record.read_bytes())  # its writer is another process
    staged = [path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert b"1" in staged, "a copy, since the checkpoint itself was deleted"
    assert b"2" in staged


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upload": "s3://key:SECRET@bucket/runs"}, "checkpoints.upload .*without credentials"),
        ({"upload": "ftp://SECRET"}, "checkpoints.upload .*begins with s3://"),
        ({"wandb_project": "a/b/c"}, "checkpoints.wandb_project .*entity/project"),
        ({"upload": "s3://bucket", "enabled": False}, "checkpoints.upload .*checkpoints to be written"),
        ({"keep_best": 1}, "checkpoints.best_metric .*rollout/recent_return"),
        ({"keep_every": -1}, "checkpoints.keep_every"),
    ],
)
def test_settings_that_cannot_work_are_named_before_the_start(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s){message}") as caught:
        check_config(small_config(checkpoints=CheckpointsConfig(**settings)))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("extra", ["remote", "wandb"])
def test_an_extra_that_is_not_installed_is_named(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.checks.checkpoints.find_spec", lambda name: None)
    chosen: dict[str, Any] = {"upload": "s3://bucket"} if extra == "remote" else {"wandb_project": "a"}
    with pytest.raises(ConfigurationError, match=rf"pip install 'async-rl-orchestrator\[{extra}\]'"):
        check_config(small_config(checkpoints=CheckpointsConfig(**chosen)))


def test_the_facts_of_a_run_are_in_its_manifest(tmp_path: Path) -> None:
    config = small_config(epochs=2, run_dir=tmp_path / "run", checkpoints=CheckpointsConfig(every=1, keep=0))
    final = anyio.run(Trainer(config).run)
    manifest = CheckpointFolder(tmp_path / "run" / "checkpoints").newest_valid().manifest
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert manifest["agent_step"] == final.agent_step
    assert manifest["metrics"]["loss/ppo_critic"] == last["loss/ppo_critic"]
