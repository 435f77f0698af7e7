"""Workers in separate processes: forked from a server process that has torch imported already."""

from __future__ import annotations

import logging
import socket
from typing import Any

import anyio

from orchestrator.workers.event_loop import in_thread
from orchestrator.workers.fork_server import describe_end, exit_code, fork_worker, warm_up
from orchestrator.workers.host_channel import HostChannel
from orchestrator.workers.program import check_not_entering, describe

_log = logging.getLogger("orchestrator")
KILL_SECONDS = 10.0
"""Seconds that a killed process has to be gone; only one that waits in the system for a device stays longer."""


def prepare_for_workers() -> None:
    """Have what workers are forked from import torch, while the caller does something else.

    Raises RuntimeError in a worker that is importing the host's main module.
    """
    check_not_entering()
    warm_up()


async def start(name: str, threads: int) -> tuple[HostChannel, ProcessBody]:
    """A worker process that waits for its object to be constructed."""
    check_not_entering()
    channel, worker_socket = HostChannel.pair()

    def launch() -> tuple[dict[str, Any], ProcessBody]:
        with worker_socket:
            return describe(name), ProcessBody(*fork_worker(worker_socket))

    try:
        described, body = await in_thread(launch)
    except BaseException:
        channel.hang_up()
        raise
    await channel.send_async((described, threads))
    return channel, body


class ProcessBody:
    """The process `pid`, whose keeper is on the other end of `leash`."""

    def __init__(self, pid: int, leash: socket.socket) -> None:
        leash.setblocking(False)
        self._pid = pid
        self._leash = leash
        self._waiting = anyio.Lock(fast_acquire=True)  # several may wait for the end, and only one can read
        self._ended = False
        self._code: int | None = None

    async def wait(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            async with self._waiting:
                while not self._ended:
                    await anyio.wait_readable(self._leash)
                    self._code = exit_code(self._leash)
                    self._ended = True
                    self._leash.close()
        return self._ended

    async def kill(self) -> None:
        if not self._ended:
            # Also if a fork of this process has the other copy of it, for which closing would not be enough.
            self._leash.shutdown(socket.SHUT_WR)
            if not await self.wait(KILL_SECONDS):
                _log.error("the worker process %d was killed, and is still there %g s later", self._pid, KILL_SECONDS)

    def describe_end(self) -> str:
        if not self._ended:
            return "its connection broke, yet the process still runs"
        return describe_end(self._code)
