"""The processes behind `fork_server`: the server itself, and one keeper for each worker. Nothing here runs in the host.

The server imports once what all workers need, and forks a keeper for each request. The keeper forks the worker, tells
the host how it ended, and sees to it that neither the worker nor anything that the worker has started outlives the
host, an order to end, or the worker itself. They are in separate sessions, so that what a terminal sends to the
host's group, such as Ctrl-C, reaches none of them.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import importlib
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, NoReturn

import psutil

from orchestrator.workers.fork_server import NUMBER, inherit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

LEFTOVER_GRACE = 0.5
"""Seconds that what a worker has left behind has to end after SIGTERM, before SIGKILL."""
_UNKILLABLE_SECONDS = 5.0
_WATCH_SECONDS = 1.0
"""Between two looks at the host, where the system cannot tell of its end."""
_HOSTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Host:
    """The process that all this is for: `pidfd` becomes readable at its end; -1 where the system has none."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd

    def wait(self, *others: int) -> set[int]:
        """Wait until one of `others` can be read, or for a while; which of them can be."""
        watched = [*others, self.pidfd] if self.pidfd >= 0 else others
        return set(select.select(watched, [], [], None if self.pidfd >= 0 else _WATCH_SECONDS)[0])

    def is_gone(self) -> bool:
        if self.pidfd >= 0:
            return bool(select.select([self.pidfd], [], [], 0)[0])
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def main(control: int, host_pid: int, host_pidfd: int, preload: Sequence[str]) -> None:
    """Serve requests, each a byte with a worker's connection and its keeper's, until the host closes or ends."""
    for number in _HOSTS_SIGNALS:
        signal.signal(number, _leave_to_the_host)
    # Python warns of forks of processes with threads, which the libraries that are preloaded have some of, at rest.
    warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
    for name in preload:
        # A worker that needs what cannot be imported says so itself.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers report to the host; the system need not keep their status
    host = Host(host_pid, host_pidfd)
    # Workers may ask for workers of their own.
    of_workers, for_workers = socket.socketpair()
    requests = {one.fileno(): one for one in (socket.socket(fileno=control), of_workers)}
    while True:
        asked = host.wait(*requests) & requests.keys()
        for descriptor in asked:
            descriptors = _next_request(requests[descriptor])
            if descriptors is None:
                os._exit(0)
            _fork_keeper(list(requests.values()), for_workers, host, descriptors)
        if not asked and host.is_gone():
            os._exit(0)


def _next_request(requests: socket.socket) -> list[int] | None:
    """The descriptors of the next request; None when there will be none."""
    size = array.array("i").itemsize
    data, ancillary, _, _ = requests.recvmsg(1, socket.CMSG_SPACE(2 * size), getattr(socket, "MSG_CMSG_CLOEXEC", 0))
    descriptors = array.array("i")
    for _, _, content in ancillary:
        descriptors.frombytes(content[: len(content) - len(content) % size])
    return list(descriptors) if data else None


def _fork_keeper(requests: list[socket.socket], for_workers: socket.socket, host: Host, descriptors: list[int]) -> None:
    try:
        if len(descriptors) == 2 and os.fork() == 0:
            for one in requests:
                one.close()
            _keep(host, for_workers, *map(_socket, descriptors))
    except OSError as error:
        _tell(descriptors[1], -(error.errno or 0))
    for descriptor in descriptors:
        os.close(descriptor)


def _socket(descriptor: int) -> socket.socket:
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


# The keeper.


def _keep(host: Host, for_workers: socket.socket, connection: socket.socket, leash: socket.socket) -> NoReturn:
    """Fork the worker, and end it with all that it has started when it is time.

    The end of the leash is the host's order to end the worker at once.
    """
    code: int | None = None
    try:
        _adopt_orphans()
        wakeup, write_wakeup = os.pipe()
        os.set_blocking(write_wakeup, False)
        signal.set_wakeup_fd(write_wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _leave_to_the_host)
        keeper = os.getpid()
        worker = os.fork()
        if not worker:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _end_with(keeper)
            for descriptor in (wakeup, write_wakeup, leash.fileno(), *([host.pidfd] if host.pidfd >= 0 else [])):
                os.close(descriptor)
            leash.detach()
            _work(connection, for_workers)
        connection.close()
        for_workers.close()
        family = _Family(worker)
        _tell(leash.fileno(), worker)
        while family.exit_code is None:
            readable = host.wait(leash.fileno(), wakeup)
            if wakeup in readable:
                os.read(wakeup, 4096)
            family.reap()
            if leash.fileno() in readable or host.is_gone():
                break
        family.end(wakeup)
        code = family.exit_code
    except OSError as error:
        code = -(error.errno or 0)
    finally:
        if code is not None:
            _tell(leash.fileno(), code)
        os._exit(0)


class _Family:
    """A worker and what it has started."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self.exit_code: int | None = None

    def reap(self) -> bool:
        """Take note of those that have ended; whether any is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self._worker:
                self.exit_code = os.waitstatus_to_exitcode(status)

    def end(self, wakeup: int) -> None:
        """The worker at once, then the rest: with some time to clean up, then by force."""
        if self.exit_code is None:
            with contextlib.suppress(OSError):
                os.kill(self._worker, signal.SIGKILL)
        for number, seconds in ((signal.SIGTERM, LEFTOVER_GRACE), (signal.SIGKILL, _UNKILLABLE_SECONDS)):
            deadline = time.monotonic() + seconds
            told = set[int]()
            while time.monotonic() < deadline:
                self._send(number, told)
                if not self.reap():
                    return
                if select.select([wakeup], [], [], 0.05)[0]:
                    os.read(wakeup, 4096)

    def _send(self, number: signal.Signals, told: set[int]) -> None:
        """Send a signal to all that are left, once to each."""
        if sys.platform != "linux":  # orphans are not ours to see there: those in the worker's group, at least
            with contextlib.suppress(OSError):
                os.killpg(self._worker, number)
        for process in psutil.Process().children(recursive=True):
            if process.pid not in told:
                told.add(process.pid)
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)


def _tell(leash: int, number: int) -> None:
    with contextlib.suppress(OSError):  # the host has gone
        os.write(leash, NUMBER.pack(number))


def _adopt_orphans() -> None:
    """Have descendants whose parents have ended become children of this process (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_with(parent: int) -> None:
    """Have the system kill this process when its parent is killed (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


# The worker.


def _work(connection: socket.socket, for_workers: socket.socket) -> NoReturn:
    """Serve the host as a process like any other: its environments may start processes of their own."""
    code = 1
    try:
        os.setsid()
        atexit._clear()  # pyright: ignore[reportPrivateUsage] - what the server has registered is the server's
        os.register_at_fork(after_in_child=_restore_signals)
        for number in _HOSTS_SIGNALS:
            signal.siginterrupt(number, False)
        from orchestrator.workers.channel import Channel
        from orchestrator.workers.program import enter
        from orchestrator.workers.serve import refuse, serve
        from state.user_code import expect_no_signals

        expect_no_signals()
        inherit(for_workers)
        channel = Channel(connection)
        with contextlib.suppress(EOFError, ConnectionError):  # the host has gone, or given the worker up
            program, threads = channel.receive()
            try:
                enter(program)
            except BaseException as error:
                refuse(channel, error)
            else:
                serve(channel, threads)
        _run_exit_functions()
        code = 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(code)


def _run_exit_functions() -> None:
    """What the interpreter does at its end, as far as it is about what environments have left open."""
    import multiprocessing.util

    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    multiprocessing.util._exit_function()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]


def _leave_to_the_host(number: int, frame: FrameType | None) -> None:
    """A service manager's SIGTERM goes to all processes; the host decides, and needs its workers to the end.

    A handler, since ignored signals would be ignored by all that environments start, too, which then could not be
    terminated.
    """


def _restore_signals() -> None:
    for number in _HOSTS_SIGNALS:
        if signal.getsignal(number) is _leave_to_the_host:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
