"""Workers in processes of their own: forked from a server process that has torch imported already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import TYPE_CHECKING

import anyio

from orchestrator.workers.channel import Channel
from orchestrator.workers.event_loop import in_thread
from orchestrator.workers.fork_server import context, warm_up
from orchestrator.workers.host_channel import HostChannel

if TYPE_CHECKING:
    import socket
    from multiprocessing.context import ForkServerProcess


async def start(name: str, threads: int) -> tuple[HostChannel, ProcessBody]:
    """A worker process that waits for its object to be constructed."""
    channel, worker_socket = HostChannel.pair()
    process = context.Process(target=_main, args=(worker_socket, threads), name=f"orchestrator-{name}", daemon=True)

    def launch() -> None:
        with worker_socket:
            warm_up()
            process.start()

    await in_thread(launch)
    return channel, ProcessBody(process)


def _main(worker_socket: socket.socket, threads: int) -> None:
    # The host decides when a worker ends: a Ctrl-C or a service manager's SIGTERM goes to the whole group, and
    # the host still needs its workers for the final checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_the_host, name="host-watch", daemon=True).start()

    from orchestrator.workers.serve import serve

    serve(Channel(worker_socket), threads)


def _exit_with_the_host() -> None:
    """A host that is killed takes its workers with it, also those in the middle of a computation."""
    host = multiprocessing.parent_process()
    if host is not None:
        host.join()
        os._exit(1)


class ProcessBody:
    """The process that a worker runs in."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    async def wait(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await anyio.wait_readable(self._process.sentinel)
        return await in_thread(self._reap, 0)

    async def kill(self) -> None:
        self._process.kill()
        await in_thread(self._reap, None)

    def _reap(self, timeout: float | None) -> bool:
        self._process.join(timeout)
        return self._process.exitcode is not None

    def describe_end(self) -> str:
        code = self._process.exitcode
        if code is None:
            return "its connection broke, yet the process still runs"
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (the system's out-of-memory killer ends processes so)" if name == "SIGKILL" else ""
            return f"killed by {name}{hint}"
        return f"it exited with code {code}"
