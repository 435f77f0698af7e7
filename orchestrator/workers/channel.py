"""Messages between the host and one worker: pickled objects over a Unix socket pair, memory as file descriptors.

A `SharedBuffer` anywhere inside a message travels as its descriptor, so bulk data is never copied through here.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import sys
from typing import Any

import anyio
import cloudpickle

from state.shared_memory import SharedBuffer

_HEADER = struct.Struct("!QI")  # payload bytes, descriptors
_MAX_DESCRIPTORS = 64


class Channel:
    """One end of a connection. The worker's end blocks; the host's end awaits."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    @staticmethod
    def pair() -> tuple[Channel, socket.socket]:
        """The host's end, and the socket for the worker's end."""
        host, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        host.setblocking(False)
        return Channel(host), worker

    def send(self, message: object) -> None:
        """Blocks until the message is written."""
        data, descriptors = _encode(message)
        sent = socket.send_fds(self.socket, [data], descriptors)
        if sent < len(data):
            self.socket.sendall(memoryview(data)[sent:])

    def receive(self) -> Any:
        """Blocks until a message is there; EOFError when the other end is closed."""
        header, descriptors = bytearray(), list[int]()
        while len(header) < _HEADER.size:
            part, fds, _, _ = socket.recv_fds(self.socket, _HEADER.size - len(header), _MAX_DESCRIPTORS)
            if not part:
                raise EOFError
            header += part
            descriptors += fds
        size, _ = _HEADER.unpack(header)
        payload = bytearray(size)
        view = memoryview(payload)
        while view:
            count = self.socket.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
        return _decode(payload, descriptors)

    async def send_async(self, message: object) -> None:
        """As `send`, without blocking the event loop."""
        data, descriptors = _encode(message)
        view = memoryview(data)
        while view:
            try:
                sent = socket.send_fds(self.socket, [view], descriptors)
            except BlockingIOError:
                await anyio.wait_writable(self.socket)
                continue
            descriptors = []
            view = view[sent:]

    async def receive_async(self) -> Any:
        """As `receive`, without blocking the event loop."""
        header, descriptors = bytearray(), list[int]()
        while len(header) < _HEADER.size:
            try:
                part, fds, _, _ = socket.recv_fds(self.socket, _HEADER.size - len(header), _MAX_DESCRIPTORS)
            except BlockingIOError:
                await anyio.wait_readable(self.socket)
                continue
            if not part:
                raise EOFError
            header += part
            descriptors += fds
        size, _ = _HEADER.unpack(header)
        payload = bytearray(size)
        view = memoryview(payload)
        while view:
            try:
                count = self.socket.recv_into(view)
            except BlockingIOError:
                await anyio.wait_readable(self.socket)
                continue
            if not count:
                raise EOFError
            view = view[count:]
        return _decode(payload, descriptors)

    def hang_up(self) -> None:
        """Close the host's end; whoever awaits it gets a ClosedResourceError, the worker an end of file."""
        anyio.notify_closing(self.socket)
        self.socket.close()


def _encode(message: object) -> tuple[bytes, list[int]]:
    try:
        if _interactive():
            raise pickle.PicklingError
        payload, descriptors = _pickle(message, pickle.Pickler)
    except (pickle.PicklingError, AttributeError, TypeError):
        # Lambdas, closures and classes of a notebook's cells have no importable name: they travel by value.
        payload, descriptors = _pickle(message, cloudpickle.Pickler)
    return _HEADER.pack(len(payload), len(descriptors)) + payload, descriptors


def _interactive() -> bool:
    return not hasattr(sys.modules.get("__main__"), "__file__")


def _pickle(message: object, base: type[pickle.Pickler]) -> tuple[bytes, list[int]]:
    descriptors: list[int] = []

    class ChannelPickler(base):
        def persistent_id(self, obj: Any) -> tuple[int, int] | None:
            if type(obj) is SharedBuffer:
                descriptors.append(obj.fd)
                return len(descriptors) - 1, obj.nbytes
            return None

    stream = io.BytesIO()
    ChannelPickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    if len(descriptors) > _MAX_DESCRIPTORS:
        raise ValueError(f"a message can carry {_MAX_DESCRIPTORS} shared buffers, not {len(descriptors)}")
    return stream.getvalue(), descriptors


class _ChannelUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, descriptors: list[int]) -> None:
        super().__init__(stream)
        self._buffers = dict[int, SharedBuffer]()
        self._descriptors = descriptors

    def persistent_load(self, pid: tuple[int, int]) -> SharedBuffer:
        index, nbytes = pid
        if index not in self._buffers:
            self._buffers[index] = SharedBuffer(self._descriptors[index], nbytes)
            os.set_inheritable(self._descriptors[index], False)
        return self._buffers[index]


def _decode(payload: bytearray, descriptors: list[int]) -> Any:
    return _ChannelUnpickler(io.BytesIO(payload), descriptors).load()
