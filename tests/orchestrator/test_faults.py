"""What a run does when its parts fail: the cause is named, what can go on goes on, and nothing is left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import psutil
import pytest

from orchestrator import Hook, HookFailed, NonFiniteLossError, Trainer, WorkerCrashed
from orchestrator.config.error import ConfigurationError
from orchestrator.environments import EnvironmentFailed
from orchestrator.loop.patience import Patience
from orchestrator.loop.rings import EXPERIENCE, POLICY
from orchestrator.loop.worker_group import worker_group
from orchestrator.workers.interrupt import Interrupt
from state.shared_memory import SlotRing
from tests.orchestrator.snapshots.test_resume import assert_same
from tests.orchestrator.training import FailingLoss, losses_with, small_config, worker_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.workers.worker import Worker
    from state.trainer_state import TrainerState
    from tests.orchestrator.training import Backend

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
both_backends = pytest.mark.parametrize("backend", ["inline", "process"])


@pytest.fixture(scope="module", autouse=True)
def what_is_there_stays() -> Iterator[None]:
    """Where the tests look for garbage, they need not look through all that has been imported each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    yield
    gc.collect()
    assert not worker_processes()
    shared = Path("/dev/shm")
    assert not shared.is_dir() or not list(shared.glob("*orchestrator*"))


def with_environment(config: Any, **options: Any) -> Any:
    return dataclasses.replace(
        config,
        environment="tests.orchestrator.training:failing_environment",
        collection=dataclasses.replace(config.collection, environment_options=options),
    )


class FailureHook(Hook):
    def __init__(self) -> None:
        self.failures: list[int] = []

    async def on_failure(self, state: TrainerState) -> None:
        self.failures.append(state.epoch)


class RaisingHook(Hook):
    overflow = "block"

    def __init__(self, on_error: Any) -> None:
        self.on_error = on_error

    async def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch == 2:
            raise RuntimeError("the hook gave up")


async def test_a_failing_hook_is_logged_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        final = await Trainer(small_config(epochs=6), hooks=[RaisingHook("log")]).run()
    assert final.epoch >= 6
    assert "raising_hook" in caplog.text
    assert "the hook gave up" in caplog.text


@both_backends
async def test_a_failing_hook_that_must_not_fail_stops_the_run_after_its_epoch(backend: Backend) -> None:
    with pytest.raises(HookFailed, match="raising_hook") as caught:
        await Trainer(small_config(epochs=10_000, backend=backend), hooks=[RaisingHook("stop")]).run()
    assert "the hook gave up" in repr(caught.value.__cause__)


@both_backends
async def test_a_failing_hook_can_end_the_run_at_once(backend: Backend) -> None:
    failure = FailureHook()
    with pytest.raises(HookFailed, match="failed to handle on_epoch_end of epoch 2") as caught:
        await Trainer(small_config(epochs=10_000, backend=backend), hooks=[RaisingHook("raise"), failure]).run()
    assert "the hook gave up" in repr(caught.value.__cause__)


@both_backends
async def test_a_raising_loss_fails_the_run_with_the_workers_traceback(backend: Backend) -> None:
    failure = FailureHook()
    trainer = Trainer(
        small_config(epochs=100, backend=backend), hooks=[failure], losses=losses_with(FailingLoss("raise"))
    )
    with pytest.raises(ArithmeticError, match="the loss gave up") as caught:
        await trainer.run()
    assert "in compute" in "".join(caught.value.__notes__)
    assert failure.failures == [1]


async def test_a_loss_that_is_nan_is_named_with_epoch_and_minibatch() -> None:
    trainer = Trainer(small_config(epochs=100), losses=losses_with(FailingLoss("nan")))
    with pytest.raises(
        NonFiniteLossError, match=r"failing_loss is not finite in epoch 2, minibatch 3 .*update epoch 2"
    ):
        await trainer.run()


async def test_steps_that_are_nan_can_be_skipped() -> None:
    config = small_config(epochs=3)
    config = dataclasses.replace(config, learning=dataclasses.replace(config.learning, nonfinite="skip"))
    skipped: list[float] = []
    trainer = Trainer(config, losses=losses_with(FailingLoss("nan")))

    @trainer.on_epoch_end(overflow="block")
    async def count(state: TrainerState) -> None:
        assert state.loss_stats is not None
        skipped.append(state.loss_stats.get("skipped_minibatches", 0.0))

    final = await trainer.run()
    assert skipped[:3] == [0.0, 2.0, 0.0]
    assert final.policy is not None
    assert all((tensor == tensor).all() for tensor in final.policy.tensors.values())


@both_backends
@pytest.mark.parametrize("collectors", [1, 2])
async def test_a_raising_environment_fails_the_run_and_is_named(backend: Backend, collectors: int) -> None:
    config = with_environment(small_config(epochs=100, backend=backend, collectors=collectors), how="raise")
    with pytest.raises(EnvironmentFailed, match="failing_environment") as caught:
        await Trainer(config).run()
    assert "the simulator is gone" in "".join([str(caught.value), *caught.value.__notes__])


async def test_a_killed_collector_is_replaced_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_environment(small_config(epochs=5, backend="process"), how="kill", once=str(tmp_path / "died"))
    final = await Trainer(config).run()
    assert final.epoch >= 5
    assert "'collector-0' died during 'collect': killed by SIGKILL" in caplog.text
    assert "starting it again (1 of 3)" in caplog.text


async def test_an_environment_that_forks_changes_nothing_though_both_processes_return() -> None:
    before = worker_processes()
    config = small_config(epochs=4, backend="process")
    plain = await Trainer(with_environment(config)).run()
    forked = await Trainer(with_environment(config, how="fork")).run()
    assert_same(plain, forked)
    assert worker_processes() == before


async def test_several_collectors_that_fail_at_once_raise_one_error() -> None:
    config = with_environment(small_config(collectors=2), how="raise", fail_at=1)
    async with worker_group(config, losses_with(FailingLoss("")), Interrupt(), Patience()) as workers:
        slots = {name: SlotRing(100_000, max_leased=1, name=name).claim() for name in (EXPERIENCE, POLICY)}
        await workers.publish(slots[POLICY])
        with pytest.raises(EnvironmentFailed):
            await workers.collect(slots[EXPERIENCE], slots[POLICY])


async def test_a_collector_that_keeps_dying_fails_the_run(caplog: pytest.LogCaptureFixture) -> None:
    config = with_environment(small_config(epochs=5, backend="process"), how="kill")
    with pytest.raises(WorkerCrashed, match="'collector-0' died during 'collect': killed by SIGKILL") as caught:
        await Trainer(config).run()
    assert "4 times within an hour" in str(caught.value)
    assert "failing_environment" in str(caught.value)
    assert caplog.text.count("starting it again") == 3


async def test_a_collector_may_die_more_often_in_all_than_within_an_hour(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orchestrator.loop.restarts.RESTART_SECONDS", 0.0)
    monkeypatch.setattr("orchestrator.loop.restarts.MAX_RESTARTS", 1)
    final = await Trainer(with_environment(small_config(epochs=4, backend="process"), how="kill")).run()
    assert final.epoch >= 4
    assert caplog.text.count("starting it again (1 of 1) within an hour") > 1


async def test_a_learner_that_keeps_being_killed_fails_the_run_by_name() -> None:
    failure = FailureHook()
    trainer = Trainer(
        small_config(epochs=100, backend="process"), hooks=[failure], losses=losses_with(FailingLoss("kill"))
    )
    with pytest.raises(WorkerCrashed, match="'learner' died during 'learn': killed by SIGKILL.*4 times within an hour"):
        await trainer.run()
    assert failure.failures == [1]


@pytest.mark.parametrize("after_epochs", [0, 2])
async def test_cancellation_from_outside_reaps_everything(after_epochs: int) -> None:
    config = small_config(epochs=100_000, backend="process", collectors=2)
    left: list[str] = []

    class Leaving(Hook):
        async def on_epoch_end(self, state: TrainerState) -> None:
            if state.epoch >= after_epochs:
                cancel.cancel()
                try:
                    await anyio.sleep_forever()
                finally:
                    left.append("left")

    with anyio.CancelScope() as cancel:
        async with Trainer(config, hooks=[Leaving()]).start():
            if not after_epochs:
                cancel.cancel()
            await anyio.sleep_forever()
    assert cancel.cancelled_caught
    assert left == (["left"] if after_epochs else [])


async def test_a_hanging_environment_is_reaped_when_the_run_is_cancelled(tmp_path: Path) -> None:
    hangs = tmp_path / "hangs"
    config = with_environment(small_config(epochs=100, backend="process"), how="hang", once=str(hangs))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Trainer(config).run)
            while not hangs.exists():
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("how", ["cancel", "timeout", "wait_for"])
async def test_asyncios_own_ways_to_cancel_reap_everything(how: str) -> None:
    began = asyncio.Event()

    class Beginning(Hook):
        async def on_epoch_end(self, state: TrainerState) -> None:
            began.set()

    run = Trainer(small_config(epochs=100_000, backend="process"), hooks=[Beginning()]).run()
    if how == "cancel":
        task = asyncio.create_task(run)
        await asyncio.wait_for(began.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    elif how == "timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60) as timeout, asyncio.TaskGroup() as tasks:
                tasks.create_task(run)
                await began.wait()
                timeout.reschedule(0.0)
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run, 3.0)  # whatever the run is at by then


async def test_a_worker_that_a_hook_leaves_open_ends_with_the_run() -> None:
    class Hoarding(Hook):
        worker: Worker

        async def on_epoch_end(self, state: TrainerState) -> None:
            if state.epoch == 1:
                self.worker = await self.run.open_worker("hoarded", dict)

    hook = Hoarding()
    await Trainer(small_config(epochs=3, backend="process"), hooks=[hook]).run()
    assert hook.worker.ended
    assert not worker_processes(), "though the hook still refers to it"
    with pytest.raises(RuntimeError, match="'late' was opened after the end of its run"):
        await hook.run.open_worker("late", dict)
    assert not worker_processes()


async def test_an_error_in_the_watching_code_ends_the_run() -> None:
    async def watch() -> None:
        async with Trainer(small_config(epochs=100_000, backend="process")).start() as run:
            async for _ in run.states():
                raise KeyError("watcher")

    with pytest.raises(KeyError, match="watcher"):
        await watch()


async def test_an_environment_that_does_not_exist_is_refused_before_anything_starts() -> None:
    config = dataclasses.replace(small_config(), environment="CartPole-v7")
    with pytest.raises(ConfigurationError, match="CartPole"):
        await Trainer(config).run()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_workers_of_a_killed_host_end_with_it(tmp_path: Path) -> None:
    script = tmp_path / "host.py"
    script.write_text(
        "import anyio, sys\n"
        "from orchestrator import Trainer\n"
        "from tests.orchestrator.training import small_config\n"
        "async def main():\n"
        "    async with Trainer(small_config(epochs=100_000, backend='process')).start() as run:\n"
        "        async for state in run.states():\n"
        "            print(state.epoch, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    anyio.run(main)\n"
    )
    host = await anyio.to_thread.run_sync(_start, script)
    assert host.stdout is not None
    with anyio.fail_after(60):
        await anyio.to_thread.run_sync(host.stdout.readline)
    family = psutil.Process(host.pid).children(recursive=True)
    assert len(family) >= 4, "fork server, its tracker, collector, learner"
    host.send_signal(signal.SIGKILL)
    host.wait()
    deadline = time.monotonic() + 60
    while [process for process in family if process.is_running() and process.status() != "zombie"]:
        assert time.monotonic() < deadline, "orphans"
        await anyio.sleep(0.02)
    host.stdout.close()


def _start(script: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment)
