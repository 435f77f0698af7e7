from __future__ import annotations

import os
import signal
from typing import Any

import anyio
import numpy as np
import psutil
import pytest
import torch
from torch import nn

from orchestrator.hooks.hook import Hook, StateUpdate
from orchestrator.hooks.run_in_worker import run_in_worker
from orchestrator.workers.worker import WorkerCrashed
from state.experience import Experience, ExperienceSpec, FieldSpec
from state.policy_snapshot import PolicyLayout, PolicySnapshot
from state.shared_memory import SharedBuffer, SlotRing
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import DEADLINE, publish_epochs, running, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def add(a: int, b: int) -> int:
    return a + b


def fail(text: str) -> None:
    raise KeyError(text)


def largest_weight(policy: PolicySnapshot) -> float:
    return max(float(np.abs(array).max()) for array in policy.tensors.values())


def mean_reward(experience: Experience) -> float:
    return float(experience["reward"].mean())


def tell_pid_and_hang(pid: SharedBuffer) -> None:
    np.frombuffer(pid.map_shared(), dtype=np.int64)[0] = os.getpid()
    while True:
        pass


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def test_a_function_is_called_in_a_process_of_its_own() -> None:
    with anyio.fail_after(DEADLINE):
        assert await run_in_worker(add, 2, 3) == 5
        assert await run_in_worker(os.getpid) != os.getpid()
        offset = 10
        assert await run_in_worker(lambda value: value + offset, 1) == 11


async def test_its_exception_is_raised_with_its_traceback() -> None:
    with anyio.fail_after(DEADLINE), pytest.raises(KeyError, match="no such key") as caught:
        await run_in_worker(fail, "no such key")
    assert "in fail" in caught.value.__notes__[0]


async def test_a_policy_snapshot_can_be_an_argument() -> None:
    module = nn.Linear(3, 2)
    layout = PolicyLayout.of(module)
    ring = SlotRing(layout.nbytes, max_leased=4, name="policy")
    slot = ring.claim()
    arrays: dict[str, Any] = layout.arrays(slot.buffer.map_shared())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            arrays[name][...] = parameter.fill_(0.25).numpy()
    arrays["weight"][1, 2] = -7.0
    lease = ring.lease(slot)
    assert lease is not None
    snapshot = PolicySnapshot(3, layout, lambda: nn.Linear(3, 2), lease)
    with anyio.fail_after(DEADLINE):
        assert await run_in_worker(largest_weight, snapshot) == 7.0


async def test_an_experience_can_be_an_argument() -> None:
    spec = ExperienceSpec(2, 4, (FieldSpec("reward", (), "float32"),))
    ring = SlotRing(spec.nbytes, max_leased=4, name="experience")
    slot = ring.claim()
    spec.array(slot.buffer.map_shared(), "reward")[...] = np.arange(8).reshape(2, 4)
    lease = ring.lease(slot)
    assert lease is not None
    with anyio.fail_after(DEADLINE):
        assert await run_in_worker(mean_reward, Experience(spec, 0, 0, lease)) == 3.5


async def test_cancelling_kills_the_process() -> None:
    pid = SharedBuffer.create(8)
    memory = np.frombuffer(pid.map_shared(), dtype=np.int64)
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_worker, tell_pid_and_hang, pid)
            await until(lambda: bool(memory[0]))
            tasks.cancel_scope.cancel()
    assert not psutil.pid_exists(int(memory[0]))


async def test_a_crash_is_named() -> None:
    with anyio.fail_after(DEADLINE), pytest.raises(WorkerCrashed, match=r"worker 'be_killed' died.*SIGKILL"):
        await run_in_worker(be_killed)


async def test_a_hook_with_a_timeout_kills_its_computation_and_goes_on() -> None:
    pid = SharedBuffer.create(8)
    memory = np.frombuffer(pid.map_shared(), dtype=np.int64)

    class Heavy(Hook):
        timeout = 60.0

        async def on_rollout_end(self, state: TrainerState) -> None:
            self.timeout = 1.0  # the process has been started before, so its start is quick
            await run_in_worker(tell_pid_and_hang, pid)

        async def on_epoch_end(self, state: TrainerState) -> StateUpdate:
            return StateUpdate(results={"sum": await run_in_worker(add, state.epoch, 1)})

    hook = Heavy()
    async with running(hook) as engine:
        with anyio.fail_after(DEADLINE):
            await publish_epochs(engine, 3)
            assert await engine.drain(DEADLINE) == ()
            results = engine.fold(TrainerState()).results
            assert results is not None
            assert results["sum"].value == 4
            hook.timeout = 1.0
            await publish_epochs(engine, 3, event="on_rollout_end")
            assert await engine.drain(DEADLINE) == ()
            assert engine.statistics().hooks["heavy"].failed == 1
    assert not memory[0] or not psutil.pid_exists(int(memory[0]))
