"""Workers in a long-lived thread of the host: for debuggers, notebooks and tests. Same messages, same results."""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING

from orchestrator.workers.channel import Channel
from orchestrator.workers.event_loop import in_thread
from orchestrator.workers.host_channel import HostChannel
from orchestrator.workers.serve import serve

if TYPE_CHECKING:
    import socket


async def start(name: str, threads: int) -> tuple[HostChannel, ThreadBody]:
    """A worker thread that waits for its object to be constructed."""
    channel, worker_socket = HostChannel.pair()
    thread = threading.Thread(target=_main, args=(worker_socket, threads), name=f"orchestrator-{name}", daemon=True)
    thread.start()
    return channel, ThreadBody(thread)


def _main(worker_socket: socket.socket, threads: int) -> None:
    with worker_socket:
        serve(Channel(worker_socket), threads)


class ThreadBody:
    """The thread that a worker runs in."""

    def __init__(self, thread: threading.Thread) -> None:
        self._thread = thread

    async def wait(self, seconds: float) -> bool:
        await in_thread(self._thread.join, seconds, abandon_on_cancel=True)
        return not self._thread.is_alive()

    async def kill(self) -> None:
        warnings.warn(
            f"the inline worker {self._thread.name!r} is still computing and a thread cannot be ended by force; "
            "it ends when its present call returns (the process backend has no such limit)",
            RuntimeWarning,
            stacklevel=2,
        )

    def describe_end(self) -> str:
        return "its thread ended"
