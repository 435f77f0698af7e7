"""The host's side of a worker for a host that has no event loop, such as a worker with workers of its own."""

from __future__ import annotations

import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.workers.channel import Channel
from orchestrator.workers.fork_server import describe_end, exit_code, fork_worker
from orchestrator.workers.program import describe
from orchestrator.workers.reply import WorkerCrashed, result_of
from orchestrator.workers.serve import CONSTRUCT, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CLOSE_GRACE = 4.0
"""Seconds that workers have to end by themselves; less than the worker has whose workers they are."""
_KILL_SECONDS = 2.0
_LOOK_SECONDS = 0.25


class BlockingWorker:
    """A stateful object in a process or a thread of its own. Requests are answered in order; see `Worker`.

    The constructor asks for `factory(*args)`: the first answer is that of this request.
    """

    def __init__(
        self,
        backend: Literal["inline", "process"],
        name: str,
        factory: Callable[..., object],
        *args: object,
        threads: int = 1,
    ) -> None:
        self.name = name
        self.unanswered = 0
        self._method = CONSTRUCT
        self._how_ended = ""
        """What its keeper says only once."""
        mine, theirs = socket.socketpair()
        self._channel = Channel(mine)
        self._leash: socket.socket | None = None
        self._thread: threading.Thread | None = None
        try:
            if backend == "process":
                with theirs:
                    _, self._leash = fork_worker(theirs)
                self._channel.send((describe(name), threads))
            else:
                self._thread = threading.Thread(
                    target=_serve, args=(theirs, threads), name=f"orchestrator-{name}", daemon=True
                )
                self._thread.start()
            self.send(CONSTRUCT, factory, args)
        except BaseException:
            self.kill()
            raise

    def call(self, method: str, *args: object) -> Any:
        """The result of calling `method` on the worker's object. Raises as `receive`."""
        self.send(method, *args)
        return self.receive()

    def send(self, method: str, *args: object) -> None:
        """Request a call, whose answer `receive` returns. Raises WorkerCrashed where the worker has died."""
        self._method = method
        try:
            self._channel.send((method, args))
        except ConnectionError as error:
            raise self._crashed() from error
        self.unanswered += 1

    def receive(self, waiting: Callable[[float], None] | None = None) -> Any:
        """The answer to the oldest request without one. Blocks; `waiting` is called now and then with the seconds so
        far, and may raise.

        Raises what the method raised, with the worker's traceback as a note; WorkerCrashed when the worker died.
        """
        if waiting is not None:
            began = time.monotonic()
            while not self._channel.arrives(_LOOK_SECONDS):
                waiting(time.monotonic() - began)
        self.unanswered -= 1
        try:
            reply = self._channel.receive()
        except (EOFError, ConnectionError) as error:
            raise self._crashed() from error
        return result_of(reply, self.name)

    def hang_up(self) -> None:
        """Have the worker end when it has answered."""
        _shut_down(self._channel.socket)

    def wait(self, seconds: float) -> bool:
        """Whether the worker has ended, within so many seconds from now."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))
            return not self._thread.is_alive()
        if self._leash is None:
            return True
        return bool(select.select([self._leash], [], [], max(0.0, seconds))[0])

    def kill(self) -> None:
        """End the worker by force, where that can be done."""
        if self._leash is not None:
            # Also if a fork of this process has the other copy of it, for which closing would not be enough.
            self._leash.shutdown(socket.SHUT_WR)
            self.wait(_KILL_SECONDS)
            self._leash.close()
            self._leash = None
        _shut_down(self._channel.socket)
        self._channel.socket.close()

    def _crashed(self) -> WorkerCrashed:
        if not self._how_ended:
            ended = self._leash is not None and self.wait(CLOSE_GRACE)
            code = exit_code(self._leash) if ended and self._leash is not None else None
            self._how_ended = describe_end(code) if ended else "its connection broke"
        return WorkerCrashed(f"worker {self.name!r} died during {self._method!r}: {self._how_ended}")


def close_workers(workers: Iterable[BlockingWorker], grace: float = CLOSE_GRACE) -> None:
    """End workers side by side: by request first, after `grace` seconds by force."""
    workers = list(workers)
    for worker in workers:
        worker.hang_up()
    deadline = time.monotonic() + grace
    for worker in workers:
        worker.wait(deadline - time.monotonic())
        worker.kill()


def call_in_process(name: str, function: Callable[..., Any], *args: object) -> Any:
    """`function(*args)` in a new process; blocks.

    Raises what the function raises, and WorkerCrashed when the process dies.
    """
    worker = BlockingWorker("process", name, _Call)
    try:
        worker.receive()
        return worker.call("run", function, args)
    finally:
        close_workers([worker], grace=0)


class _Call:
    def run(self, function: Callable[..., Any], args: tuple[object, ...]) -> Any:
        return function(*args)


def _serve(connection: socket.socket, threads: int) -> None:
    with connection:
        serve(Channel(connection), threads)


def _shut_down(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the worker has gone already, or this has been closed
        return
