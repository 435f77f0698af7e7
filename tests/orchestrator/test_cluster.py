"""Cells on the machines of a Ray cluster, which here are several raylets on one machine: the same bits as on one, and
what happens when something there is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import gymnasium
import pytest

from losses import Loss
from orchestrator import (
    CheckpointsConfig,
    ConfigurationError,
    Hook,
    PolicyConfig,
    Trainer,
    TrainerConfig,
)
from orchestrator.loop.cluster import ClusterError
from orchestrator.workers.remote import Call, RemoteMachine
from tests.machines import Machines, config_on
from tests.orchestrator.test_cells import assert_same, trained
from tests.orchestrator.test_cells_faults import Deadly
from tests.orchestrator.training import losses_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from losses import Minibatch, PolicyEvaluation
    from state import TrainerState

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines(3)
    yield made
    made.close()


@pytest.fixture
def machines_to_lose(machines: Machines) -> Iterator[Machines]:
    """For those that break some."""
    yield machines
    machines.replace_lost()


def config_for(cells: int, machines: Machines | None = None, **settings: Any) -> TrainerConfig:
    # Two cells have a core each.
    return config_on(machines, cells=cells, shards=4, collectors=2 if cells == 2 else 4, **settings)


# The same bits.


KINDS: dict[str, dict[str, Any]] = {
    "half an epoch, normalized": {
        "staleness": 0.5,
        "policy": PolicyConfig(hidden_sizes=(8,), normalize_observations=True, normalize_rewards=True),
    },
    "in turn, lstm": {"staleness": 0, "policy": PolicyConfig(network="lstm", lstm_size=4)},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
async def test_cells_on_several_machines_learn_the_same_bits(settings: dict[str, Any], machines: Machines) -> None:
    assert_same(await trained(config_for(1, **settings)), await trained(config_for(4, machines, **settings)))
    await machines.assert_nothing_left()


async def test_a_run_resumes_exactly_with_and_without_a_cluster(machines: Machines, tmp_path: Path) -> None:
    policy = PolicyConfig(hidden_sizes=(8,), normalize_observations=True, normalize_rewards=True)
    whole = await trained(config_for(1, epochs=9, policy=policy))
    folder = tmp_path / "run"
    for cells, epochs in ((4, 3), (1, 5), (4, 9)):
        made = config_for(cells, machines, epochs=epochs, policy=policy)
        made = dataclasses.replace(made, run_dir=folder, checkpoints=CheckpointsConfig(every=1))
        final = await trained(made, resume=folder if folder.exists() else None)
    assert_same(whole, final)
    await machines.assert_nothing_left()


class Seeing(Hook):
    """How much of the experience a hook sees, and whose."""

    name = "seeing"

    def __init__(self) -> None:
        self.seen: set[tuple[range, int, int]] = set()

    async def on_rollout_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        assert state.experience["valid"].any(axis=1).all(), "every row has been collected"
        assert len(state.experience.tensor("reward")) == state.experience.segments
        self.seen.add((state.experience.cells, state.experience.of_cells, len(state.experience["reward"])))


class SeeingLoss(Loss):
    """The same of a loss in the learner."""

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        return evaluation.value.square().mean()

    def on_rollout_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        assert state.experience["valid"].any(axis=1).all(), "every row has been collected"
        cell = self.context.cell
        assert state.experience.cells == range(cell, cell + 1)


async def test_hooks_see_the_experience_of_their_machine_and_losses_that_of_theirs(machines: Machines) -> None:
    hook = Seeing()
    with anyio.fail_after(200):
        await Trainer(config_for(2, machines), hooks=[hook], losses=losses_with(SeeingLoss())).run()
    assert hook.seen == {(range(1), 2, 4)}


# Faults.


class DeadlyElsewhere(Deadly):
    """Kills the learner of the last cell."""

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        if self.context.cell:
            return super().compute(minibatch, evaluation)
        return 0.01 * evaluation.value.square().mean()


async def test_a_learner_that_dies_on_another_machine_is_replaced_with_the_same_bits(
    machines: Machines, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = await trained(config_for(2), losses_with(DeadlyElsewhere(tmp_path)))
    replaced = await trained(config_for(2, machines), losses_with(DeadlyElsewhere(tmp_path, "SIGKILL")))
    assert (tmp_path / "done").exists()
    assert_same(undisturbed, replaced)
    assert "worker 'learner-1' died during 'learn': killed by SIGKILL" in caplog.text
    await machines.assert_nothing_left()


class DeadlyElsewhereOnce(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Ends its process, where that was started by Ray, at the first step after the first rollout."""

    def __init__(self, marker: str) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._marker = Path(marker)
        self._steps = 0

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._steps == 40 and "RAY_RAYLET_PID" in os.environ and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


async def test_a_collector_that_dies_on_another_machine_is_replaced(
    machines: Machines, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Its environment ends the process once."""
    config = config_for(
        2,
        machines,
        environment="tests.orchestrator.test_cluster:DeadlyElsewhereOnce",
        environment_options={"marker": str(tmp_path / "done")},
    )
    final = await trained(config)
    assert final.epoch == 6
    assert (tmp_path / "done").exists()
    assert "worker 'collector-1' died during 'collect': killed by SIGKILL" in caplog.text
    await machines.assert_nothing_left()


class Breaking(Hook):
    """Kills the raylet of a cell's machine after an epoch, and notes the epochs that it hears of."""

    name = "breaking"

    def __init__(self, machines: Machines, after: int = 3) -> None:
        self.machines = machines
        self.epochs: list[int] = []
        self._after = after

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.epochs.append(state.epoch)
        if state.epoch == self._after:
            raylet = self.machines.raylets_with_workers()[0]
            raylet.kill()
            await anyio.to_thread.run_sync(raylet.wait)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The most bytes of each piece of shared memory that were sent to another machine."""
    most: dict[str, int] = {}
    make = RemoteMachine.__init__

    def making(self: RemoteMachine, call: Call, *args: Any) -> None:
        def noting(method: str, *arguments: Any, **limits: Any) -> Any:
            if method == "share":
                number, _, content = arguments
                mine = [one for one in Path("/proc/self/fd").iterdir() if one.exists() or one.is_symlink()]
                name = next(str(one.readlink()) for one in mine if _number(one) == number)
                most[name] = max(most.get(name, 0), len(content or b""))
            return call(method, *arguments, **limits)

        make(self, noting, *args)

    monkeypatch.setattr(RemoteMachine, "__init__", making)
    return most


def _number(descriptor: Path) -> int:
    with contextlib.suppress(OSError):  # closed meanwhile
        return descriptor.stat().st_ino
    return -1


@pytest.mark.parametrize("on_cell_lost", ["replace", "shrink"])
async def test_a_run_whose_machine_is_lost_goes_on(
    on_cell_lost: Any,
    machines_to_lose: Machines,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    sent: dict[str, int],
) -> None:
    """Ray takes some seconds to find out; until then the machine's processes may go on without their raylet."""
    machines = machines_to_lose
    config = config_for(2, machines, epochs=10**6, run_dir=tmp_path / "run", staleness=0.5)
    hook = Breaking(machines)
    with anyio.fail_after(200):
        async with Trainer(dataclasses.replace(config, on_cell_lost=on_cell_lost), hooks=[hook]).start() as run:
            lost = 0
            async for state in run.states():
                if not lost and "cell 1 has lost its machine" in caplog.text:
                    lost = state.epoch
                if lost and state.epoch > lost + 5:
                    break
            there = machines.raylets_with_workers()
            run.stop()
            await run.result()
    assert ("another is looked for" if on_cell_lost == "replace" else "run with those of cell 0") in caplog.text
    assert len(there) == (on_cell_lost == "replace")
    assert {size for name, size in sent.items() if "experience" in name} == {0}, "it is sent to nobody"
    if on_cell_lost == "replace":
        assert any(size for name, size in sent.items() if "policy" in name), "weights are, to the new machine"
    assert hook.epochs == sorted(set(hook.epochs)), "none is repeated"
    await machines.assert_nothing_left()


async def test_a_run_fails_with_its_machine_where_it_is_to(
    machines_to_lose: Machines, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machines = machines_to_lose
    config = config_for(2, machines, epochs=10**6, run_dir=tmp_path / "run")
    config = dataclasses.replace(config, on_cell_lost="fail", checkpoints=CheckpointsConfig(every=1))
    with anyio.fail_after(200), pytest.raises(ClusterError, match=r"cell 1 has lost its machine, .*on_cell_lost is"):
        await Trainer(config, hooks=[Breaking(machines)]).run()
    await machines.assert_nothing_left()
    assert any((tmp_path / "run" / "checkpoints").iterdir()), "what was committed stays"
    assert "starting it again" not in caplog.text


class Stopping(Hook):
    """Stops the process that passes on what is asked on another machine, as a network would that hangs."""

    name = "stopping"

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    async def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch == 3:
            raylet = self._machines.raylets_with_workers()[0]
            next(one for one in raylet.children() if "_Actor" in " ".join(one.cmdline())).suspend()


async def test_a_machine_that_hangs_is_replaced_after_the_cells_timeout(
    machines: Machines, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.loop.cluster._LOOKED_SECONDS", 1.0)
    with anyio.fail_after(200):
        final = await Trainer(config_for(2, machines, epochs=20, cell_timeout=20.0), hooks=[Stopping(machines)]).run()
    assert final.epoch == 20
    assert "cell 1 has lost its machine" in caplog.text
    assert "within 20 s; another is looked for" in caplog.text
    await machines.assert_nothing_left()


async def test_a_run_that_is_cancelled_while_it_joins_a_cluster_leaves_it(machines: Machines) -> None:
    """The program, which may be a service, has no more of the cluster then."""
    import ray

    with anyio.fail_after(100):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Trainer(config_for(2, machines)).run)
            while not ray.is_initialized():
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
        while any(thread.name == "Cluster._join" for thread in threading.enumerate()):  # which can't be stopped
            await anyio.sleep(0.01)
    assert not ray.is_initialized()
    await machines.assert_nothing_left()


async def test_a_program_that_is_connected_to_another_cluster_is_told_so(machines: Machines) -> None:
    import ray

    ray.init(address=machines.address, log_to_driver=False)
    try:
        config = dataclasses.replace(config_for(2), cluster="127.0.0.1:1")
        with anyio.fail_after(100), pytest.raises(ClusterError, match=r"is connected to the cluster .* already"):
            await Trainer(config).run()
        assert ray.is_initialized()
    finally:
        ray.shutdown()


class BreakingOwn(Breaking):
    """Kills the raylet of the machine that the run is started on."""

    async def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch == self._after:
            raylet = self.machines.head
            raylet.kill()
            await anyio.to_thread.run_sync(raylet.wait)


class BreakingAll(Breaking):
    """Kills all of Ray, and stops the run, as a job scheduler does with a job that it ends."""

    async def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch == self._after:
            self.machines.kill()
            self.run.stop("the job ends")
            with anyio.move_on_after(2):
                await anyio.Event().wait()
            self.run.stop_now()


async def test_a_run_that_ends_with_its_cluster_is_saved_and_can_be_resumed(tmp_path: Path) -> None:
    """Ray waits for a head that is gone in every call, and ends the program after a minute."""
    own, folder = Machines(1), tmp_path / "run"
    try:
        config = config_for(2, own, epochs=10**6, run_dir=folder, checkpoints=CheckpointsConfig(every=1000))
        with anyio.fail_after(50):
            final = await Trainer(config, hooks=[BreakingAll(own)]).run()
    finally:
        own.close()
    assert final.epoch >= 3
    ended = config_for(1, epochs=final.epoch + 1, run_dir=folder)
    assert (await Trainer(ended, resume=folder).run()).epoch == final.epoch + 1


async def test_a_run_fails_where_ray_is_gone_from_its_own_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.loop.cluster._SAID_SECONDS", 1.0)
    own = Machines(1)
    try:
        config = config_for(2, own, epochs=10**6, run_dir=tmp_path / "run")
        with anyio.fail_after(200), pytest.raises(ClusterError, match="Ray does not answer on this one, or is gone"):
            await Trainer(config, hooks=[BreakingOwn(own)]).run()
        await own.assert_nothing_left()
    finally:
        own.close()
    assert any((tmp_path / "run" / "checkpoints").iterdir()), "what has been learned is saved"


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["cancel", "stop_now"])
async def test_however_a_run_ends_nothing_of_it_is_left_on_any_machine(how: str, machines: Machines) -> None:
    with anyio.fail_after(200), anyio.CancelScope() as scope:
        async with Trainer(config_for(2, machines, epochs=10**6)).start() as run:
            await run.next_state(None)
            assert {"learner-0", "learner-1", "collector-0", "collector-1"} <= run.statistics().workers.keys()
            assert machines.processes()
            if how == "cancel":
                scope.cancel()
                await anyio.sleep_forever()
            run.stop_now()
            await run.result()
    await machines.assert_nothing_left()


# What is refused.


async def test_a_cluster_that_is_not_there_is_named() -> None:
    config = dataclasses.replace(config_for(2), cluster="127.0.0.1:1")
    with anyio.fail_after(100), pytest.raises(ClusterError, match=r"cluster = '127\.0\.0\.1:1': no Ray cluster"):
        await Trainer(config).run()


async def test_a_machine_where_the_run_can_not_begin_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['orchestrator.workers.machine'] = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    incomplete = Machines(1)
    try:
        with anyio.fail_after(100), pytest.raises(ClusterError, match=r"(?s)cell 1 can't begin .*ModuleNotFoundError"):
            await Trainer(config_for(2, incomplete)).run()
    finally:
        incomplete.close()


async def test_a_cell_that_no_machine_has_room_for_is_named_with_what_it_needs(machines: Machines) -> None:
    config = config_for(2, machines)
    collection = dataclasses.replace(config.collection, collectors=8)
    config = dataclasses.replace(config, collection=collection, cell_timeout=3.0)
    with anyio.fail_after(100), pytest.raises(ClusterError, match=r"no machine for cell 1 .*it needs 5 CPU"):
        await Trainer(config).run()
    await machines.assert_nothing_left()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"cells": 1}, r"cluster = 'auto'\s+expected: nothing while cells is 1"),
        ({"cells": 4}, r"collection\.collectors = 2\s+expected: a multiple of cells = 4"),
        ({"cluster": "ray://somewhere:10001"}, r"cluster = 'ray://somewhere:10001'\s+expected: auto, or HOST:PORT"),
        ({"on_cell_lost": "wait"}, r"on_cell_lost = 'wait'"),
    ],
)
def test_what_does_not_fit_a_cluster_is_refused_with_the_cure(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        Trainer(dataclasses.replace(config_for(2), **{"cluster": "auto"} | settings))


def test_a_cluster_that_a_request_names_needs_trust() -> None:
    config = dataclasses.replace(config_for(2), cluster="192.0.2.1:6379")
    with pytest.raises(ConfigurationError, match=r"cluster = '192\.0\.2\.1:6379'\s+expected: no code to run"):
        Trainer(config, trust_code=False)
