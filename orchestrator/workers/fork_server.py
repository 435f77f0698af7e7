"""The server that worker processes are forked from: the host's side. It imports nothing of ours or of torch's here:
`warm_up` must be cheap.

The server is this process's own. multiprocessing's is shared with everything else in the program, which may have
started it without torch, or with another environment.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from multiprocessing import spawn

# Imported once by the server, so that each worker starts with it.
_PRELOAD = [
    "torch",
    "gymnasium",
    "orchestrator.collection.service",
    "orchestrator.evaluation.service",
    "orchestrator.learning.learner",
    "orchestrator.workers.channel",
    "orchestrator.workers.program",
    "orchestrator.workers.serve",
]
_ENVIRONMENT = {
    # Threads of one computation wait for each other by spinning for long unless OpenMP is set otherwise when it is
    # loaded; on a machine whose cores are all busy, that makes the computation many times slower. But a thread that
    # sleeps at once takes longer to wake than a small operation takes: so they spin for some microseconds. (The
    # number is GNU's; others know the policy only.)
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1000",
    # By default glibc gives the memory of each large tensor back to the system, which must then zero its pages anew
    # for the next one: thousands of page faults per minibatch.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(2_000_000_000),
}
"""Of the workers, except where the user has set something else."""
NUMBER = struct.Struct("!q")
"""What a keeper sends to the host: first the worker's process id, or minus the error number if it could not be forked;
when all has ended, the worker's exit code as `os.waitstatus_to_exitcode` gives it."""
_ATTEMPTS = 3


def warm_up() -> None:
    """Start the server without waiting for it, so that it imports torch while the caller does something else."""
    with _lock:
        _running()


def fork_worker(connection: socket.socket) -> tuple[int, socket.socket]:
    """Fork a worker that is served `connection`: its process id, and the leash that its keeper is on (see `forking`).

    Blocks, and starts the server if there is none: after a fork of this process, or when the server was killed. A
    worker's own workers come from the server that it came from itself.

    Raises OSError where the system has no process to give, WorkerCrashed when the server keeps ending.
    """
    code: int | None = None
    for _ in range(_ATTEMPTS):
        with _lock:
            server = _running()
            leash = server.request(connection)
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = leash.recv(NUMBER.size, socket.MSG_WAITALL)
        if not answer:
            leash.close()
            with _lock:
                code = server.end()
                _forget(server)
            continue
        pid: int = NUMBER.unpack(answer)[0]
        if pid < 0:
            leash.close()
            raise OSError(-pid, f"no process could be forked for a worker: {os.strerror(-pid)}")
        return pid, leash
    from orchestrator.workers.reply import WorkerCrashed

    raise WorkerCrashed(
        f"the process that workers are forked from has ended {_ATTEMPTS} times before it forked one, the last time "
        f"with exit code {code}; see above, or below, what it said"
    )


def inherit(requests: socket.socket) -> None:
    """In a worker: its own workers are asked for here, of the server that forked it."""
    global _server
    _server = _Server(requests, None)


def exit_code(leash: socket.socket) -> int | None:
    """What a worker's keeper says of its end; None where the keeper has been killed, too. Blocks."""
    data = leash.recv(NUMBER.size)
    return NUMBER.unpack(data)[0] if data else None


def describe_end(code: int | None) -> str:
    """How a worker with that exit code has ended, for an error message."""
    if code is None:
        return "it was killed together with the process that looked after it"
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the system's out-of-memory killer ends processes so)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"it exited with code {code}"


def environment() -> dict[str, str]:
    """The environment of workers that are started now."""
    found = _ENVIRONMENT | {name: value for name, value in os.environ.items() if value or name not in _ENVIRONMENT}
    if found["OMP_WAIT_POLICY"] != _ENVIRONMENT["OMP_WAIT_POLICY"] and not os.environ.get("GOMP_SPINCOUNT"):
        del found["GOMP_SPINCOUNT"]  # which would count for more than the policy that the user has set
    return found


def search_path() -> list[str]:
    """Where workers look for modules: where this process does."""
    return [entry or os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - links stay as they are


class _Server:
    """The server as it is asked by this process, whose child it is where there is a `process`."""

    def __init__(self, requests: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        self._requests = requests
        self._process = process

    @classmethod
    def start(cls) -> _Server:
        requests, theirs = socket.socketpair()
        # Tells of this process's end even if a fork of it lives on, with copies of all its descriptors.
        pidfd = _own_pidfd()
        passed = [theirs.fileno(), *([pidfd] if pidfd >= 0 else [])]
        # Nothing but the built-in sys is imported before the path is right: a file of the working directory may be
        # called like a module.
        program = (
            f"import sys; sys.path[:] = {search_path()!r}; from orchestrator.workers.forking import main; "
            f"main({theirs.fileno()}, {os.getpid()}, {pidfd}, {_PRELOAD!r})"
        )
        flags: list[str] = subprocess._args_from_interpreter_flags()  # pyright: ignore
        try:
            process = subprocess.Popen(
                [os.fsdecode(spawn.get_executable()), *flags, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                env=environment(),
                start_new_session=True,
            )
        finally:
            theirs.close()
            if pidfd >= 0:
                os.close(pidfd)
        return cls(requests, process)

    def is_running(self) -> bool:
        return self._process is None or self._process.poll() is None

    def request(self, connection: socket.socket) -> socket.socket:
        """Ask for a worker; the leash on which its keeper will answer, or which ends where the server has ended."""
        leash, keepers = socket.socketpair()
        with keepers, contextlib.suppress(ConnectionError):
            socket.send_fds(self._requests, [b"w"], [connection.fileno(), keepers.fileno()])
        return leash

    def end(self) -> int | None:
        """Its workers live on. Returns its exit code; None for one that is not this process's to end."""
        self._requests.close()
        if self._process is None:
            return None
        self._process.kill()
        return self._process.wait()

    def forget(self) -> None:
        """In a fork of this process, whose child the server is not."""
        self._requests.close()
        if self._process is not None:
            self._process.returncode = 0


def _own_pidfd() -> int:
    try:
        return os.pidfd_open(os.getpid())
    except (AttributeError, OSError):  # not Linux, or an old one
        return -1


_server: _Server | None = None
_lock = threading.Lock()


def _running() -> _Server:
    global _server
    if _server is not None and not _server.is_running():
        _server.end()
        _server = None
    _server = _server or _Server.start()
    return _server


def _forget(server: _Server) -> None:
    global _server
    if _server is server:
        _server = None


def _end() -> None:
    if _server is not None:
        _server.end()


def _after_fork_in_child() -> None:
    global _server, _lock
    _lock = threading.Lock()
    if _server is not None:
        _server.forget()
        _server = None


atexit.register(_end)
os.register_at_fork(after_in_child=_after_fork_in_child)
