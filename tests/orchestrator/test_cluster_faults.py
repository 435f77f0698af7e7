"""What breaks on a Ray cluster at awkward moments, while a run begins, saves or pauses. The cluster is several raylets
on one machine."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import gymnasium
import psutil
import pytest

from losses import Loss
from orchestrator import CheckpointsConfig, Trainer, TrainerConfig
from orchestrator.checkpoints import CheckpointFolder
from orchestrator.loop.cluster import Cluster, ClusterError
from orchestrator.loop.patience import Patience, WorkerHangs
from orchestrator.run import parts_of
from orchestrator.workers.interrupt import Interrupt
from orchestrator.workers.machine import Machine
from orchestrator.workers.remote import Call, RemoteMachine
from tests.machines import Machines, config_on
from tests.orchestrator.test_cells import assert_same, trained
from tests.orchestrator.training import losses_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from losses import Minibatch, PolicyEvaluation

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines(2, cores=4)  # with room for three cells
    yield made
    made.close()


@pytest.fixture
def machines_to_lose(machines: Machines) -> Iterator[Machines]:
    """For those that break some."""
    yield machines
    machines.replace_lost()


def config_for(machines: Machines | None, *, cells: int = 2, **settings: Any) -> TrainerConfig:
    return config_on(machines, cells=cells, shards=cells, collectors=cells, **settings)


class DyingWhileSaved(Loss):
    """Its state is asked for in cell 1, which then dies, once."""

    def __init__(self, marker: Path | None) -> None:
        super().__init__()
        self._marker = marker
        self.asked = 0

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        return 0.01 * evaluation.value.square().mean()

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        if self._marker is not None and self.context.cell and self.asked > 6 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def load_state_dict(self, state: Any) -> None: ...


async def test_a_learner_that_dies_while_a_checkpoint_is_taken_is_replaced_with_the_same_bits(
    machines: Machines, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def config(name: str) -> TrainerConfig:
        made = config_for(machines, run_dir=tmp_path / name)
        return dataclasses.replace(made, checkpoints=CheckpointsConfig(every=2))

    undisturbed = await trained(config("a"), losses_with(DyingWhileSaved(None)))
    disturbed = await trained(config("b"), losses_with(DyingWhileSaved(tmp_path / "done")))
    assert (tmp_path / "done").exists()
    assert "worker 'learner-1' died" in caplog.text
    assert_same(undisturbed, disturbed)
    for name in "ab":
        saved = CheckpointFolder(tmp_path / name / "checkpoints").list()
        assert [one.name for one in saved] == ["00000002", "00000004", "00000006"]
    await machines.assert_nothing_left()


@pytest.mark.parametrize("what", ["workers", "machine"])
async def test_what_dies_while_a_run_is_paused_is_replaced(
    what: str, machines_to_lose: Machines, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machines = machines_to_lose
    config = config_for(machines, epochs=10**6, run_dir=tmp_path / "run")
    config = dataclasses.replace(config, checkpoints=CheckpointsConfig(every=10**6))
    folder = tmp_path / "run" / "checkpoints"
    expected = "cell 1 has lost its machine" if what == "machine" else "worker 'learner-1' died during"
    with anyio.fail_after(200):
        async with Trainer(config).start() as run:
            await run.next_state(None)
            run.pause()
            run.request_checkpoint()
            while not list(folder.glob("[0-9]*/manifest.json")):
                await anyio.sleep(0.05)
            raylet = machines.raylets_with_workers()[0]
            if what == "machine":
                raylet.kill()
                await anyio.to_thread.run_sync(raylet.wait)
            else:
                for worker in workers_of(machines):
                    worker.kill()
            run.request_checkpoint()
            run.resume()
            while expected not in caplog.text:  # a machine's processes may go on for some seconds without their raylet
                await run.next_state(run.state)
            epoch = run.state.epoch
            while run.state.epoch < epoch + 4:
                await run.next_state(run.state)
            run.stop()
            await run.result()
    await machines.assert_nothing_left()


async def test_workers_are_started_again_where_what_they_are_forked_from_has_been_killed(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(200):
        async with Trainer(config_for(machines, epochs=10**6)).start() as run:
            await run.next_state(None)
            there, workers = [psutil.Process(pid) for pid in machines.processes()], workers_of(machines)
            next(one for one in there if one.parent() not in there).kill()
            for worker in workers:
                worker.kill()
            epoch = run.state.epoch
            while run.state.epoch < epoch + 4:
                await run.next_state(run.state)
            run.stop()
            await run.result()
    assert "worker 'learner-1' died during" in caplog.text
    assert "worker 'collector-1' died during" in caplog.text
    await machines.assert_nothing_left()


def workers_of(machines: Machines) -> list[psutil.Process]:
    return [one for one in map(psutil.Process, machines.processes()) if not one.children()]


# Runs that are to end now.


class HangingElsewhere(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Hangs, where its process was started by Ray, at the first step after the first rollout."""

    def __init__(self, marker: str) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._marker = Path(marker)
        self._steps = 0

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._steps == 40 and "RAY_RAYLET_PID" in os.environ:
            self._marker.touch()
            time.sleep(1000)
        return super().step(action)


async def test_an_environment_worker_that_hangs_on_another_machine_is_named(
    machines: Machines, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    name, marker = "tests.orchestrator.test_cluster_faults:HangingElsewhere", tmp_path / "hangs"
    config = config_for(machines, epochs=10**6, environment=name, environment_options={"marker": str(marker)})
    collection = dataclasses.replace(config.collection, environment_workers=1)
    with anyio.fail_after(200):
        async with Trainer(dataclasses.replace(config, collection=collection)).start() as run:
            while not marker.exists():
                await anyio.sleep(0.05)
            waits_for = parts_of(run).patience.waits_for["collector-1"]
            while not await anyio.to_thread.run_sync(waits_for):
                await anyio.sleep(0.05)
            run.stop_now()
            await run.result()
    assert "worker 'collector-1' has not answered 'collect'" in caplog.text
    assert "it waits for 'collector-1-environments-0'" in caplog.text
    await machines.assert_nothing_left()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_stopping_does_not_wait_for_a_machine_without_room(
    machines: Machines,
) -> None:
    config = config_for(machines, epochs=10**6)
    collection = dataclasses.replace(config.collection, collectors=8)
    with anyio.fail_after(100), pytest.raises(WorkerHangs, match="has no machine for cell 1 yet"):
        async with Trainer(dataclasses.replace(config, collection=collection)).start() as run:
            while not ray_is_connected():
                await anyio.sleep(0.05)
            run.stop_now()
            await run.result()
    await machines.assert_nothing_left()


def ray_is_connected() -> bool:
    import ray

    return ray.is_initialized()


async def test_stopping_does_not_wait_for_a_machine_that_hangs_while_workers_start_there(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs when it is first asked for a worker; what the run waits for otherwise is `cell_timeout`, ten minutes."""
    hangs = threading.Event()
    make = RemoteMachine.__init__

    def making(self: RemoteMachine, call: Call, *args: Any) -> None:
        def hanging(method: str, *arguments: Any, **limits: Any) -> Any:
            if method == "start_worker" and not hangs.is_set():
                raylet = next(one for one in machines.raylets() if actors_of(one))
                actors_of(raylet)[0].suspend()
                hangs.set()
            return call(method, *arguments, **limits)

        make(self, hanging, *args)

    monkeypatch.setattr(RemoteMachine, "__init__", making)
    with anyio.fail_after(200), pytest.raises(WorkerHangs, match="has not answered 'start' within"):
        async with Trainer(config_for(machines, epochs=10**6)).start() as run:
            await anyio.to_thread.run_sync(hangs.wait)
            run.stop_now()
            await run.result()
    await machines.assert_nothing_left()


def actors_of(raylet: psutil.Process) -> list[psutil.Process]:
    return [one for one in raylet.children() if "_Actor" in " ".join(one.cmdline())]


# Little time, or room.


@pytest.mark.parametrize("seconds", [0.2, 1.0])
async def test_a_timeout_that_is_too_short_for_a_cell_to_start_is_named(machines: Machines, seconds: float) -> None:
    with anyio.fail_after(100), pytest.raises(ClusterError, match=rf"cell_timeout = {seconds:g} s"):
        await Trainer(config_for(machines, cell_timeout=seconds)).run()
    await machines.assert_nothing_left()


async def assert_one_error(config: TrainerConfig, message: str) -> None:
    with anyio.fail_after(100), pytest.raises(ClusterError, match=message):
        async with Trainer(config).start() as run:
            try:
                await run.result()
            finally:
                assert isinstance(run.error, ClusterError)


async def test_several_cells_without_room_are_one_error(machines: Machines) -> None:
    config = config_for(machines, cells=8, cell_timeout=3.0)
    await assert_one_error(config, r"no machine for cell \d after cell_timeout = 3 s")
    await machines.assert_nothing_left()


class UnableToBegin(Machine):
    def __init__(self) -> None:
        raise ModuleNotFoundError("no module that the run needs")

    def whereabouts(self) -> tuple[str, str]:
        raise NotImplementedError


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_several_cells_that_cannot_begin_are_one_error(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.loop.cluster._Actor", UnableToBegin)
    config = config_for(machines, cells=4)
    await assert_one_error(config, r"(?s)cell \d can't begin on a machine .* no module")
    await machines.assert_nothing_left()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_several_cells_that_fail_at_once_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray, so that they do it at the same time."""
    at_once = threading.Barrier(3)

    def join(self: Cluster) -> None: ...

    def start(self: Cluster, cell: int, needed: dict[str, float]) -> None:
        at_once.wait()
        raise ClusterError(f"cell {cell} can't begin")

    monkeypatch.setattr(Cluster, "_join", join)
    monkeypatch.setattr(Cluster, "_start", start)
    for _ in range(20):
        with pytest.raises(ClusterError, match=r"cell \d can't begin"):
            await Cluster(config_for(None, cells=4), Interrupt(), Patience()).open()


async def test_a_lost_machine_without_a_successor_is_an_error_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(self: Cluster) -> None: ...

    def start(self: Cluster, cell: int, needed: dict[str, float]) -> Any:
        if started:
            raise ClusterError("the successor can't begin")
        started.append(SimpleNamespace(machine=SimpleNamespace(name="the first"), lost=""))
        return started[0]

    started: list[Any] = []
    monkeypatch.setattr(Cluster, "_join", join)
    monkeypatch.setattr(Cluster, "_start", start)
    monkeypatch.setattr("orchestrator.loop.cluster._kill", lambda place: None)
    cluster = Cluster(config_for(None), Interrupt(), Patience())
    await cluster.open()
    try:
        started[0].lost = "by a test"
        with pytest.raises(ClusterError, match="the successor can't begin"):
            await cluster.machine(1)
    finally:
        await cluster.close()
