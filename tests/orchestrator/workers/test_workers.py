from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, Literal

import anyio
import numpy as np
import psutil
import pytest

from orchestrator.workers.fork_server import environment
from orchestrator.workers.interrupt import Interrupt
from orchestrator.workers.worker import WorkerCrashed, open_worker, start_worker
from state.shared_memory import SharedBuffer

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
Backend = Literal["inline", "process"]
both_backends = pytest.mark.parametrize("backend", ["inline", "process"])


class OddError(Exception):
    def __init__(self, code: int, *, text: str) -> None:
        super().__init__(f"{code}: {text}")


class Accumulator:
    def __init__(self, start: int = 0) -> None:
        if start < 0:
            raise ValueError(f"start must not be negative, got {start}")
        self.total = start

    def add(self, value: int) -> int:
        self.total += value
        return self.total

    def fail(self) -> None:
        raise KeyError("no such thing")

    def fail_oddly(self) -> None:
        raise OddError(3, text="odd")

    def unpicklable(self) -> Any:
        return threading.Lock()

    def pid(self) -> int:
        return os.getpid()

    def fill(self, buffer: SharedBuffer, value: int) -> None:
        np.frombuffer(buffer.map_shared(), dtype=np.int64)[:] = value

    def wait_for(self, interrupt: Interrupt, started: SharedBuffer) -> str:
        started.map_shared()[0] = 1
        while not interrupt.is_set():
            pass
        return "interrupted"

    def hang(self, started: SharedBuffer) -> None:
        started.map_shared()[0] = 1
        while True:
            pass

    def die(self, signal_number: int) -> None:
        os.kill(os.getpid(), signal_number)

    def exit(self, code: int, leave_behind: bool = False) -> None:
        if leave_behind:  # what ignores SIGTERM: until it is killed, the end of the worker takes a moment
            left = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; sleep 1000"], stdout=subprocess.PIPE)
            assert left.stdout is not None
            left.stdout.readline()
        os._exit(code)

    def variable(self, name: str) -> tuple[str | None, bool]:
        """Of the environment, and whether it was there when the process's libraries were loaded."""
        initial = Path("/proc/self/environ").read_bytes().split(b"\0")
        return os.environ.get(name), any(entry.startswith(f"{name}=".encode()) for entry in initial)

    def open_at_most_further(self, descriptors: int) -> int:
        limit = psutil.Process().num_fds() + descriptors
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return limit


async def until_set(buffer: SharedBuffer) -> None:
    memory = buffer.map_shared()
    with anyio.fail_after(20):
        while not memory[0]:
            await anyio.sleep(0.001)


@both_backends
async def test_a_worker_keeps_its_state_between_calls(backend: Backend) -> None:
    async with start_worker(backend, "sum", Accumulator, 10) as worker:
        assert [await worker.call("add", value) for value in (1, 2, 3)] == [11, 13, 16]
        assert worker.statistics().state == "idle"
        assert repr(worker) == "<Worker 'sum': idle, 4 calls>"
    assert worker.statistics().state == "closed"


@both_backends
async def test_an_exception_arrives_with_the_workers_traceback(backend: Backend) -> None:
    async with start_worker(backend, "sum", Accumulator) as worker:
        with pytest.raises(KeyError, match="no such thing") as caught:
            await worker.call("fail")
        assert "in fail" in caught.value.__notes__[0]
        assert await worker.call("add", 1) == 1, "the worker goes on"


@both_backends
async def test_an_exception_or_value_that_does_not_pickle_is_still_reported(backend: Backend) -> None:
    async with start_worker(backend, "sum", Accumulator) as worker:
        with pytest.raises(RuntimeError, match="OddError: 3: odd"):
            await worker.call("fail_oddly")
        with pytest.raises(TypeError, match="pickle"):
            await worker.call("unpicklable")
        assert await worker.call("add", 1) == 1


@both_backends
async def test_a_constructor_that_fails_raises_and_leaves_no_worker(backend: Backend) -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        await open_worker(backend, "sum", Accumulator, -1)
    assert not [thread for thread in threading.enumerate() if thread.name == "orchestrator-sum"]


@both_backends
async def test_shared_memory_travels_as_a_descriptor(backend: Backend) -> None:
    buffer = SharedBuffer.create(8 * 10)
    async with start_worker(backend, "sum", Accumulator) as worker:
        await worker.call("fill", buffer, 42)
    assert (np.frombuffer(buffer.map_shared(), dtype=np.int64) == 42).all()


@both_backends
async def test_a_closure_can_be_the_factory(backend: Backend) -> None:
    start = 5
    async with start_worker(backend, "sum", lambda: Accumulator(start)) as worker:
        assert await worker.call("add", 1) == 6


@both_backends
async def test_an_interrupt_reaches_a_working_worker(backend: Backend) -> None:
    interrupt, started = Interrupt(), SharedBuffer.create(1)
    async with start_worker(backend, "sum", Accumulator) as worker, anyio.create_task_group() as tasks:
        replies: list[str] = []

        async def ask() -> None:
            replies.append(await worker.call("wait_for", interrupt, started))

        tasks.start_soon(ask)
        await until_set(started)
        interrupt.set()
    assert replies == ["interrupted"]


@both_backends
async def test_the_reply_to_a_cancelled_call_is_dropped(backend: Backend) -> None:
    interrupt, started = Interrupt(), SharedBuffer.create(1)
    async with start_worker(backend, "sum", Accumulator) as worker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "wait_for", interrupt, started)
            await until_set(started)
            tasks.cancel_scope.cancel()
        interrupt.set()
        assert await worker.call("add", 7) == 7


async def test_callers_take_turns() -> None:
    async with start_worker("process", "sum", Accumulator) as worker, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(worker.call, "add", 1)
    assert worker.statistics().calls == 21


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGSEGV"])
async def test_a_killed_worker_is_named_with_its_signal(signal_name: str) -> None:
    async with start_worker("process", "victim", Accumulator) as worker:
        with pytest.raises(WorkerCrashed, match=f"'victim' died during 'die': killed by {signal_name}"):
            await worker.call("die", signal.Signals[signal_name].value)
        with pytest.raises(WorkerCrashed, match="is crashed"):
            await worker.call("add", 1)


async def test_a_worker_that_exits_is_named_with_its_code() -> None:
    async with start_worker("process", "victim", Accumulator) as worker:
        with pytest.raises(WorkerCrashed, match="exited with code 3"):
            await worker.call("exit", 3)


async def test_a_hanging_worker_is_reaped_when_the_caller_is_cancelled() -> None:
    started = SharedBuffer.create(1)
    async with anyio.create_task_group() as tasks:

        async def use() -> None:
            async with start_worker("process", "hanging", Accumulator, grace=0.05) as worker:
                pids.append(await worker.call("pid"))
                await worker.call("hang", started)

        pids: list[int] = []
        tasks.start_soon(use)
        await until_set(started)
        tasks.cancel_scope.cancel()
    assert not psutil.pid_exists(pids[0])


async def test_interrupts_and_terminations_meant_for_the_host_leave_the_worker_running() -> None:
    async with start_worker("process", "sum", Accumulator) as worker:
        pid = await worker.call("pid")
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert await worker.call("add", 1) == 1


@pytest.mark.parametrize("closers", [1, 2])
async def test_a_worker_can_be_closed_while_a_call_waits_for_it_to_die(closers: int) -> None:
    worker = await open_worker("process", "dying", Accumulator)
    pid = await worker.call("pid")
    crashes: list[str] = []

    async def call() -> None:
        with pytest.raises(WorkerCrashed) as caught:
            await worker.call("exit", 3, True)
        crashes.append(str(caught.value))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            while worker.statistics().state != "crashed":
                await anyio.sleep(0.001)
            assert not crashes, "it has yet to end what it has left behind"
            for _ in range(closers):
                tasks.start_soon(worker.aclose)
    assert crashes == ["worker 'dying' died during 'exit': it exited with code 3"]
    assert worker.ended
    assert not psutil.pid_exists(pid)


async def test_workers_have_the_programs_present_environment_and_what_openmp_must_know_from_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with start_worker("process", "first", Accumulator):
        monkeypatch.setenv("SET_BY_THE_PROGRAM", "late")  # what workers are forked from is there
    async with start_worker("process", "sum", Accumulator) as worker:
        assert await worker.call("variable", "SET_BY_THE_PROGRAM") == ("late", False)
        assert await worker.call("variable", "OMP_WAIT_POLICY") == ("PASSIVE", True)
        assert await worker.call("variable", "GOMP_SPINCOUNT") == ("1000", True)


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_has_set_of_how_threads_wait_is_not_overruled(
    own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert environment().get("GOMP_SPINCOUNT") == own.get("GOMP_SPINCOUNT")


async def test_memory_for_which_a_worker_has_no_descriptor_left_is_an_error_that_names_the_limit() -> None:
    buffers = [SharedBuffer.create(8) for _ in range(20)]
    async with start_worker("process", "sum", Accumulator) as worker:
        limit = await worker.call("open_at_most_further", 4)
        with pytest.raises(OSError, match=rf"20 pieces of shared memory, .* at most {limit} may be open") as caught:
            await worker.call("add", *buffers)
        assert caught.value.errno == errno.EMFILE
        assert await worker.call("add", 1) == 1, "what follows is not taken for what was lost"
        await worker.call("fill", buffers[0], 42)
    assert (np.frombuffer(buffers[0].map_shared(), dtype=np.int64) == 42).all()


OPEN = threading.Event()


class Gate:
    """In a thread of this process, so an inline worker's."""

    def wait(self) -> None:
        assert OPEN.wait(60)

    def echo(self, value: bytes) -> bytes:
        return value


async def test_a_long_message_to_a_worker_that_hangs_can_be_cancelled_and_garbles_nothing() -> None:
    OPEN.clear()
    async with start_worker("inline", "gate", Gate) as worker:
        with anyio.move_on_after(0.01):
            await worker.call("wait")
        for _ in range(2):
            with anyio.fail_after(60), anyio.move_on_after(0.01) as scope:
                await worker.call("echo", bytes(10_000_000))
            assert scope.cancelled_caught
        OPEN.set()
        assert await worker.call("echo", b"whole") == b"whole"
