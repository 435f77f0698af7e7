"""The host's end of a connection to a worker: as `Channel`, without blocking the event loop."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import anyio

from orchestrator.workers.channel import Channel


class HostChannel(Channel):
    """For one sender and one receiver at a time, in one event loop."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        connection.setblocking(False)
        # On asyncio the socket stays registered: registering it for each message takes longer than receiving one.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._broken: Exception | None = None

    @staticmethod
    def pair() -> tuple[HostChannel, socket.socket]:
        """The host's end, and the socket for the worker's end."""
        host, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return HostChannel(host), worker

    async def send_async(self, message: object) -> None:
        """As `send`. A message that has begun is finished, also when cancelled: half of one would garble all later."""
        data, descriptors = self._framed(message)
        sent = 0
        while True:
            with suppress(BlockingIOError):
                sent += self._send_some(data, sent, descriptors)
            if sent == len(data):  # as usual at once: then nothing is awaited
                return
            with anyio.CancelScope(shield=True):
                await anyio.wait_writable(self.socket)

    async def wait_for_message(self) -> None:
        """Wait until a message can be taken. When cancelled, what has come of it is kept.

        Raises EOFError when the other end is closed, ClosedResourceError when this one is.
        """
        while not self._is_complete():
            if self._broken is not None:
                raise self._broken
            if self._loop is None and anyio.get_cancelled_exc_class() is asyncio.CancelledError:
                self._loop = asyncio.get_running_loop()
                self._loop.add_reader(self.socket, self._on_readable)
            if self._loop is not None:
                self._waiter = self._loop.create_future()
                await self._waiter
                continue
            await anyio.wait_readable(self.socket)
            try:
                self._receive_some()
            except BlockingIOError:
                continue

    def hang_up(self) -> None:
        """Close this end; whoever waits for a message gets a ClosedResourceError, the worker an end of file."""
        if self._loop is not None:
            self._break_off(anyio.ClosedResourceError())
        anyio.notify_closing(self.socket)
        self.socket.close()

    def _on_readable(self) -> None:
        try:
            self._receive_some()
            complete = self._is_complete()
        except BlockingIOError:
            return
        except (EOFError, OSError) as error:
            self._break_off(error)
            return
        if complete:
            self._wake()

    def _break_off(self, error: Exception) -> None:
        if self._broken is None:
            assert self._loop is not None
            self._loop.remove_reader(self.socket)
            self._broken = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():  # else it has been cancelled
            self._waiter.set_result(None)
