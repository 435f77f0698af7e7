"""Workers on another machine: the host's side. A thread for each passes its messages on and brings the replies."""

from __future__ import annotations

import mmap
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.workers.channel import Channel
from orchestrator.workers.event_loop import in_thread
from orchestrator.workers.host_channel import HostChannel
from orchestrator.workers.machine import KILL_SECONDS
from orchestrator.workers.program import check_not_entering, describe
from orchestrator.workers.reply import WorkerCrashed
from orchestrator.workers.serve import failure_reply

if TYPE_CHECKING:
    import socket

_CLOCK_READINGS = 5
_ANSWER_SECONDS = 10.0
"""What a machine has to answer, besides what it is asked takes, where a run that is to end waits for it."""

_NOTE_SECONDS = 2.0
"""What it has to answer what a run that is to end now would only like to know."""


class MachineLost(WorkerCrashed):
    """A machine, or what answers there, is gone."""


class Call(Protocol):
    """Calls a method of a `machine.Machine` and waits for the result: what a worker is asked as long as it takes, the
    rest for so many seconds, by default those that a cell has. Raises what it raises, and MachineLost."""

    def __call__(self, method: str, *args: object, within: float = ...) -> Any: ...


class RemoteMachine:
    """A machine with workers, as the host knows it. `call` is for any thread; slots of the ring called `own_ring` have
    nothing in them that another machine needs."""

    def __init__(self, call: Call, name: str, own_ring: str) -> None:
        self.name = name
        """What people call it."""
        self.call = call
        self.ahead = 0.0
        """Seconds that its `time.monotonic()` is ahead of the host's, as well as that can be told."""
        self._own = f"/memfd:orchestrator-{own_ring}-"
        self._shared: set[int] = set()
        self._sharing = threading.Lock()

    def compare_clocks(self) -> None:
        """Measure `ahead`; blocks."""
        readings: list[tuple[float, float]] = []
        for _ in range(_CLOCK_READINGS):
            before = time.monotonic()
            there = self.call("now")
            after = time.monotonic()
            readings.append((after - before, there - (before + after) / 2))
        self.ahead = min(readings)[1]

    def read(self, name: int, nbytes: int) -> bytes:
        """The beginning of memory of this name there. Blocks for some seconds at most; raises MachineLost."""
        memory: bytes = self.call("read", name, nbytes, within=_NOTE_SECONDS)
        return memory

    async def start_worker(self, name: str, threads: int) -> tuple[HostChannel, RemoteBody]:
        """A worker that waits for its object to be constructed. Where this is cancelled, a worker may be left there: it
        ends with what the run has on that machine."""
        check_not_entering()
        number: int = await in_thread(self.call, "start_worker", describe(name), threads, abandon_on_cancel=True)
        channel, other_end = HostChannel.pair()
        passing = threading.Thread(
            target=self._pass_on, args=(other_end, number), name=f"orchestrator-{name}", daemon=True
        )
        passing.start()
        return channel, RemoteBody(self, number)

    def share(self, descriptors: list[int]) -> list[int]:
        """The names there of the shared memory behind descriptors of this process, which are closed. Memory that the
        machine has not met is made there, with what it holds now: later, each has its own."""
        try:
            return [self._share(descriptor) for descriptor in descriptors]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _share(self, descriptor: int) -> int:
        about = os.fstat(descriptor)
        with self._sharing:
            if about.st_ino not in self._shared:
                content = None
                if about.st_blocks and not self._is_own(descriptor):  # without pages, it is all zeros
                    with mmap.mmap(descriptor, about.st_size, access=mmap.ACCESS_READ) as memory:
                        content = memory[:]
                self.call("share", about.st_ino, about.st_size, content)
                self._shared.add(about.st_ino)
        return about.st_ino

    def _is_own(self, descriptor: int) -> bool:
        try:
            return str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(self._own)
        except OSError:  # not Linux, where what nobody needs is sent once
            return False

    def _pass_on(self, connection: socket.socket, number: int) -> None:
        """In a thread: until the host hangs up, or there is nobody to pass anything on to."""
        channel = Channel(connection)
        with connection, suppress(EOFError, OSError):
            while True:
                request, descriptors = channel.receive_encoded()
                try:
                    reply: bytes | None = self.call("ask", number, request, self.share(descriptors))
                except MachineLost:
                    return
                except Exception as error:  # no memory there, say
                    channel.send(failure_reply(error))
                    continue
                if reply is None:
                    return
                channel.forward(reply, [])


class RemoteBody:
    """A worker process on another machine."""

    def __init__(self, machine: RemoteMachine, number: int) -> None:
        self._machine = machine
        self._number = number
        self._end: str | None = None

    async def wait(self, seconds: float) -> bool:
        return await self._ended(seconds, "wait_for_end", self._number, seconds)

    async def kill(self) -> None:
        await self._ended(KILL_SECONDS, "kill", self._number)

    def describe_end(self) -> str:
        return self._end or f"its connection broke, yet the process still runs, on {self._machine.name}"

    async def _ended(self, seconds: float, method: str, *args: object) -> bool:
        if self._end is None:
            try:
                end: str | None = await in_thread(self._ask_end, seconds, method, *args, abandon_on_cancel=True)
                self._end = end and f"{end}, on {self._machine.name}"
            except MachineLost as error:
                self._end = str(error)  # and with it, all that ran there
        return self._end is not None

    def _ask_end(self, seconds: float, method: str, *args: object) -> str | None:
        return self._machine.call(method, *args, within=seconds + _ANSWER_SECONDS)
