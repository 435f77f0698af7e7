"""Workers on a machine that is not the host's: the side that is there. Blocks; runs in a process that whoever places it
has started, and is called from there, by several threads at once.

Messages pass through as they are. Where one carries shared memory, the workers here get memory of this machine instead,
of the same size: what is written there stays there.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.workers.channel import Channel
from orchestrator.workers.fork_server import describe_end, environment, exit_code, fork_worker, search_path, warm_up
from state.shared_memory import SharedBuffer

if TYPE_CHECKING:
    from collections.abc import Sequence

KILL_SECONDS = 10.0
"""Seconds that a killed process has to be gone."""


class Machine:
    """The workers here, by numbers given to them, and the memory that they share, by the host's names for it."""

    def __init__(self) -> None:
        warm_up()
        self._buffers: dict[int, SharedBuffer] = {}
        self._workers: dict[int, _Forwarding] = {}
        self._lock = threading.Lock()
        self._begun = 0

    def address(self) -> str:
        """The name of this machine, for people."""
        return socket.gethostname()

    def now(self) -> float:
        """`time.monotonic()` here."""
        return time.monotonic()

    def start_worker(self, described: dict[str, Any], threads: int) -> int:
        """A worker that waits for its object to be constructed; its number. `described` as by `program.describe`."""
        worker = _Forwarding(_as_here(described), threads)
        with self._lock:
            self._begun += 1
            self._workers[self._begun] = worker
            return self._begun

    def share(self, name: int, nbytes: int, content: bytes | None) -> None:
        """Have memory for what the host calls `name`, with this content (None: zeros). Once for each name."""
        buffer = SharedBuffer.create(nbytes)
        if content is not None:
            buffer.map_shared()[: len(content)] = content
        self._buffers[name] = buffer

    def write(self, name: int, content: bytes) -> None:
        """Overwrite the begin of memory; does nothing where no worker here has any of that name."""
        buffer = self._buffers.get(name)
        if buffer is not None:
            buffer.map_shared()[: len(content)] = content

    def read(self, name: int, nbytes: int) -> bytes:
        """The begin of memory; nothing where there is none of that name."""
        buffer = self._buffers.get(name)
        return b"" if buffer is None else buffer.map_shared()[:nbytes]

    def ask(self, worker: int, request: bytes, shared: Sequence[int]) -> bytes | None:
        """A worker's reply to a request that carries memory of these names; None where the worker has died."""
        return self._workers[worker].ask(request, [self._buffers[name].fd for name in shared])

    def wait_for_end(self, worker: int, seconds: float) -> str | None:
        """Have a worker end when it has answered; how it has ended, None where it has not after so many seconds."""
        return self._workers[worker].wait_for_end(seconds)

    def kill(self, worker: int) -> str | None:
        """End a worker by force; as `wait_for_end`."""
        return self._workers[worker].kill()


class _Forwarding:
    """A worker process, and what is asked of it, which nobody reads here."""

    def __init__(self, described: dict[str, Any], threads: int) -> None:
        mine, theirs = socket.socketpair()
        self._channel = Channel(mine)
        with theirs:
            _, self._leash = fork_worker(theirs)
        self._channel.send((described, threads))
        self._end: str | None = None
        self._ending = threading.Lock()

    def ask(self, request: bytes, descriptors: list[int]) -> bytes | None:
        try:
            self._channel.forward(request, descriptors)
            reply, _ = self._channel.receive_encoded()
        except (EOFError, OSError):
            return None
        return reply

    def wait_for_end(self, seconds: float) -> str | None:
        with self._ending:
            if self._end is None:
                with suppress(OSError):  # it has gone already
                    self._channel.socket.shutdown(socket.SHUT_RDWR)
                self._look(seconds)
            return self._end

    def kill(self) -> str | None:
        with self._ending:
            if self._end is None:
                # Also if a fork of this process has the other copy of it, for which closing would not be enough.
                self._leash.shutdown(socket.SHUT_WR)
                self._look(KILL_SECONDS)
            return self._end

    def _look(self, seconds: float) -> None:
        if select.select([self._leash], [], [], max(0.0, seconds))[0]:
            self._end = describe_end(exit_code(self._leash))
            self._leash.close()
            self._channel.socket.close()


def _as_here(described: dict[str, Any]) -> dict[str, Any]:
    """The host's program as it is on this machine: with the environment variables of this one, and its own modules
    first among those that can be found."""
    own = search_path()
    here: dict[str, Any] = described | {
        "environment": environment(),
        "sys_path": [*own, *(path for path in described["sys_path"] if path not in own)],
    }
    if "dir" in here and not Path(here["dir"]).is_dir():
        here["dir"] = str(Path.cwd())
    return here
