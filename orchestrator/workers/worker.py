"""The host's side of a worker: requests that can be awaited, remote tracebacks, crashes that are named."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio

from orchestrator.workers.reply import WorkerCrashed, result_of
from orchestrator.workers.serve import CONSTRUCT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

    from orchestrator.workers.host_channel import HostChannel
    from orchestrator.workers.remote import RemoteMachine

CLOSE_GRACE = 5.0
"""Seconds that a worker has to end by itself once the host has hung up."""


class Body(Protocol):
    """What runs a worker: a process or a thread."""

    async def wait(self, seconds: float) -> bool:
        """Whether it has ended within `seconds`."""
        ...

    async def kill(self) -> None:
        """End it by force, where that can be done, and reap it."""
        ...

    def describe_end(self) -> str:
        """How it ended, for an error message."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """What a worker has done since it was started last."""

    name: str
    state: Literal["idle", "busy", "closed", "crashed"]
    calls: int
    """Requests that have been answered."""
    busy_seconds: float
    """Time between requests and their replies, the present one included."""
    waiting_seconds: float
    """The rest of its life: time without a request."""
    restarts: int = 0
    """How often it has been replaced after it had died."""

    @property
    def alive(self) -> bool:
        """Whether it can be asked for something."""
        return self.state in ("idle", "busy")


class Worker:
    """A stateful object elsewhere. One request at a time; callers wait for their turn in order."""

    def __init__(self, name: str, channel: HostChannel, body: Body) -> None:
        self.name = name
        self._channel = channel
        self._body = body
        self._turn = anyio.Lock(fast_acquire=True)
        self._state: Literal["idle", "busy", "closed", "crashed"] = "idle"
        self._calls = 0
        self._busy_seconds = 0.0
        self._began = time.monotonic()
        self._asked: float | None = None
        """When the present request was made."""
        self._ended: float | None = None
        self._unanswered = 0
        self._closing = anyio.Lock(fast_acquire=True)
        self.ended = False
        """Whether it has been closed, and is gone."""
        self.clock_ahead = 0.0
        """Seconds that its `time.monotonic()` is ahead of the host's, where it is on another machine."""
        self.observe: Callable[[str, str, float, float], None] | None = None
        """Told of every call: name of the worker, method, begin and end (`time.monotonic()`)."""

    def __repr__(self) -> str:
        return f"<Worker {self.name!r}: {self._state}, {self._calls} calls>"

    async def call(self, method: str, *args: object) -> Any:
        """The result of calling `method` on the worker's object.

        Raises what the method raised, with the worker's traceback as a note; WorkerCrashed when the worker died.
        A cancelled call is answered all the same; the answer is then dropped.
        """
        async with self._turn:
            if self._state in ("closed", "crashed"):
                raise WorkerCrashed(f"worker {self.name!r} is {self._state}; it cannot be asked to {method!r}")
            begin = self._asked = time.monotonic()
            self._state = "busy"
            reply: Any = None
            try:
                await self._channel.begin_sending((method, args))
                self._unanswered += 1
                await self._channel.finish_sending()
                while self._unanswered:
                    await self._channel.wait_for_message()
                    self._unanswered -= 1  # also a reply that cannot be unpickled here is one
                    reply = self._channel.take()
            except anyio.ClosedResourceError:
                raise WorkerCrashed(f"worker {self.name!r} was closed during {method!r}") from None
            except (EOFError, ConnectionError) as error:
                self._state = "crashed"
                with anyio.CancelScope(shield=True):
                    await self._body.wait(CLOSE_GRACE)
                raise WorkerCrashed(
                    f"worker {self.name!r} died during {method!r}: {self._body.describe_end()}"
                ) from error
            finally:
                self._calls += 1
                ended = time.monotonic()
                self._busy_seconds += ended - begin
                self._asked = None
                if self._state == "crashed":
                    self._ended = ended
                if self.observe is not None:
                    self.observe(self.name, method, begin, ended)
                if self._state == "busy":
                    self._state = "idle"
        return result_of(reply, self.name)

    async def aclose(self, grace: float = CLOSE_GRACE) -> None:
        """Hang up, wait up to `grace` seconds for the worker to end, then end it by force. Idempotent."""
        with anyio.CancelScope(shield=True):
            async with self._closing:
                if self.ended:
                    return
                if self._state != "closed":
                    self._state = "closed"
                    self._ended = self._ended or time.monotonic()
                    self._channel.hang_up()
                if not await self._body.wait(grace):
                    await self._body.kill()
                self.ended = True

    def statistics(self) -> WorkerStatistics:
        """What it has done by now."""
        now = self._ended or time.monotonic()
        busy = self._busy_seconds + (0.0 if self._asked is None else max(0.0, now - self._asked))
        return WorkerStatistics(self.name, self._state, self._calls, busy, max(0.0, now - self._began - busy))


async def close_workers(workers: Iterable[Worker], grace: float = CLOSE_GRACE) -> None:
    """End workers side by side: by request first, after `grace` seconds by force."""
    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as tasks:
            for worker in workers:
                tasks.start_soon(worker.aclose, grace)


@asynccontextmanager
async def start_worker(
    backend: Literal["inline", "process"],
    name: str,
    factory: Callable[..., object],
    *args: object,
    threads: int = 1,
    grace: float = CLOSE_GRACE,
) -> AsyncGenerator[Worker]:
    """A worker holding `factory(*args)`, closed when the context is left, however it is left.

    `threads` bounds torch's intra-operator threads in the worker.
    """
    worker = await open_worker(backend, name, factory, *args, threads=threads)
    try:
        yield worker
    finally:
        await worker.aclose(grace)


async def open_worker(
    backend: Literal["inline", "process"],
    name: str,
    factory: Callable[..., object],
    *args: object,
    threads: int = 1,
    machine: RemoteMachine | None = None,
) -> Worker:
    """As `start_worker`, on another machine than this one where one is given; the caller closes it."""
    if machine is not None:
        start = machine.start_worker
    elif backend == "process":
        from orchestrator.workers.process import start
    else:
        from orchestrator.workers.inline import start
    worker: Worker | None = None
    try:
        # A process that has been started must have an owner; elsewhere, that is what started it there.
        with anyio.CancelScope(shield=machine is None):
            worker = Worker(name, *await start(name, threads))
            worker.clock_ahead = 0.0 if machine is None else machine.ahead
        assert worker is not None
        await worker.call(CONSTRUCT, factory, args)
    except BaseException as error:
        if worker is not None:
            # One that has answered ends by itself; one that is still constructing may never.
            await worker.aclose(CLOSE_GRACE if isinstance(error, Exception) else 0)
        raise
    return worker
