"""The host's end of a connection to a worker: as `Channel`, without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

import anyio

from orchestrator.workers.channel import Channel
from orchestrator.workers.event_loop import asyncio_loop


class HostChannel(Channel):
    """For one sender and one receiver at a time, in one event loop."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        connection.setblocking(False)
        self._owner = os.getpid()
        # On asyncio the socket stays registered: registering it for each message takes longer than receiving one.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._broken: Exception | None = None
        self._rest = memoryview(b"")
        """Of a message that has begun to be sent."""

    @staticmethod
    def pair() -> tuple[HostChannel, socket.socket]:
        """The host's end, and the socket for the worker's end."""
        host, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return HostChannel(host), worker

    async def send_async(self, message: object) -> None:
        """As `send`: `begin_sending` and `finish_sending`."""
        await self.begin_sending(message)
        await self.finish_sending()

    async def begin_sending(self, message: object) -> None:
        """Send as much of a message as there is room for. When cancelled, nothing of it has been sent."""
        data, descriptors = self._framed(message)
        await self.finish_sending()  # half of another message would garble all later
        while True:
            with suppress(BlockingIOError):
                self._rest = memoryview(data)[self._send_some(data, 0, descriptors) :]
                return
            await anyio.wait_writable(self.socket)

    async def finish_sending(self) -> None:
        """Send the rest of a message that has begun. When cancelled, what is left is sent before the next message."""
        while self._rest:  # as a rule nothing, and then nothing is awaited
            with suppress(BlockingIOError):
                self._rest = self._rest[self.socket.send(self._rest) :]
                continue
            await anyio.wait_writable(self.socket)

    async def wait_for_message(self) -> None:
        """Wait until a message can be taken. When cancelled, what has come of it is kept.

        Raises EOFError when the other end is closed, ClosedResourceError when this one is.
        """
        while not self._is_complete():
            if self._broken is not None:
                raise self._broken
            if self._loop is None and (loop := asyncio_loop()) is not None:
                self._loop = loop
                loop.add_reader(self.socket, self._on_readable)
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
        if os.getpid() == self._owner:  # in a fork of it, this is only a copy of this end
            # Processes that an environment forks have copies of it too, so that closing this one is no end of file.
            with suppress(OSError):  # the worker has gone already
                self.socket.shutdown(socket.SHUT_RDWR)
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
