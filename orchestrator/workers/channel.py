"""Messages between the host and one worker: pickled objects over a Unix socket pair, memory as file descriptors.

A `SharedBuffer` anywhere inside a message travels as its descriptor, so bulk data is never copied through here.
"""

from __future__ import annotations

import array
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
_ANCILLARY = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
_BUFFER = 1 << 16
"""Bytes that are received at once; room for a longer message is made when its header is there."""


class Channel:
    """One end of a connection. The worker's end blocks; the host's end awaits."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        # What has come of the next messages.
        self._buffer = bytearray(_BUFFER)
        self._filled = 0
        self._descriptors: list[int] = []

    @staticmethod
    def pair() -> tuple[Channel, socket.socket]:
        """The host's end, and the socket for the worker's end."""
        host, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        host.setblocking(False)
        return Channel(host), worker

    def send(self, message: object) -> None:
        """Blocks until the message is written."""
        data, descriptors = _encode(message)
        sent = 0
        while sent < len(data):
            sent += self._send_some(data, sent, descriptors)

    def receive(self) -> Any:
        """Blocks until a message is there; EOFError when the other end is closed."""
        while not self._is_complete():
            self._receive_some()
        return self.take()

    async def send_async(self, message: object) -> None:
        """As `send`, without blocking the event loop. A message that has begun is finished, also when cancelled: half
        of one would garble all later ones."""
        data, descriptors = _encode(message)
        sent = 0
        while True:
            try:
                sent += self._send_some(data, sent, descriptors)
            except BlockingIOError:
                pass
            if sent == len(data):  # as usual at once: then nothing is awaited
                return
            with anyio.CancelScope(shield=True):
                await anyio.wait_writable(self.socket)

    async def wait_for_message(self) -> None:
        """Wait until a message can be taken; EOFError when the other end is closed. When cancelled, what has come of
        the message is kept."""
        while not self._is_complete():
            await anyio.wait_readable(self.socket)
            try:
                self._receive_some()
            except BlockingIOError:
                continue

    def take(self) -> Any:
        """The message that has been waited for."""
        size, count = _HEADER.unpack_from(self._buffer)
        end = _HEADER.size + size
        descriptors, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        try:
            return _decode(memoryview(self._buffer)[_HEADER.size : end], descriptors)
        finally:  # also a message that cannot be unpickled is done with
            if self._filled == end and len(self._buffer) == _BUFFER:
                self._filled = 0
            else:
                self._replace_buffer(max(_BUFFER, self._filled - end), end)

    def hang_up(self) -> None:
        """Close the host's end; whoever awaits it gets a ClosedResourceError, the worker an end of file."""
        anyio.notify_closing(self.socket)
        self.socket.close()

    def _send_some(self, data: bytes, sent: int, descriptors: list[int]) -> int:
        """Write what fits, the descriptors along with the first byte; how many bytes were written."""
        if sent:
            return self.socket.send(memoryview(data)[sent:])
        return socket.send_fds(self.socket, [data], descriptors) if descriptors else self.socket.send(data)

    def _is_complete(self) -> bool:
        """Whether a message has come; if not, there is room for what is missing."""
        needed = _HEADER.size
        if self._filled >= needed:
            needed += _HEADER.unpack_from(self._buffer)[0]
        if needed > len(self._buffer):
            self._replace_buffer(needed, 0)
        return self._filled >= needed

    def _receive_some(self) -> None:
        room = memoryview(self._buffer)[self._filled :]
        count, ancillary, _, _ = self.socket.recvmsg_into([room], _ANCILLARY)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                for descriptor in array.array("i", data):
                    os.set_inheritable(descriptor, False)
                    self._descriptors.append(descriptor)
        if not count:
            raise EOFError
        self._filled += count

    def _replace_buffer(self, size: int, begin: int) -> None:
        """A buffer of `size` with what had come from `begin` on."""
        rest = self._buffer[begin : self._filled]
        self._buffer = rest + bytes(size - len(rest))
        self._filled = len(rest)


def _encode(message: object) -> tuple[bytes, list[int]]:
    if not _interactive():
        try:
            payload = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
            return _HEADER.pack(len(payload), 0) + payload, []
        except _NOT_PLAIN:
            pass  # most messages have no memory in them, and looking for it calls Python for every object
        try:
            return _encode_by(_Pickler, message)
        except _NOT_PLAIN:
            pass
    # Lambdas, closures and classes of a notebook's cells have no importable name: they travel by value.
    return _encode_by(_ByValuePickler, message)


_NOT_PLAIN = (pickle.PicklingError, AttributeError, TypeError)


def _interactive() -> bool:
    return not hasattr(sys.modules.get("__main__"), "__file__")


def _encode_by(kind: type[_Pickler | _ByValuePickler], message: object) -> tuple[bytes, list[int]]:
    stream = io.BytesIO()
    pickler = kind(stream, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.descriptors = []
    pickler.dump(message)
    if len(pickler.descriptors) > _MAX_DESCRIPTORS:
        raise ValueError(f"a message can carry {_MAX_DESCRIPTORS} shared buffers, not {len(pickler.descriptors)}")
    payload = stream.getvalue()
    return _HEADER.pack(len(payload), len(pickler.descriptors)) + payload, pickler.descriptors


class _BuffersByDescriptor:
    """Shared buffers are named in the message by the place of their descriptor."""

    descriptors: list[int]

    def persistent_id(self, obj: Any) -> tuple[int, int] | None:
        if type(obj) is SharedBuffer:
            self.descriptors.append(obj.fd)
            return len(self.descriptors) - 1, obj.nbytes
        return None


class _Pickler(_BuffersByDescriptor, pickle.Pickler):
    pass


class _ByValuePickler(_BuffersByDescriptor, cloudpickle.Pickler):
    pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, payload: memoryview, descriptors: list[int]) -> None:
        super().__init__(io.BytesIO(payload))
        self._buffers = dict[int, SharedBuffer]()
        self._descriptors = descriptors

    def persistent_load(self, pid: tuple[int, int]) -> SharedBuffer:
        index, nbytes = pid
        if index not in self._buffers:
            self._buffers[index] = SharedBuffer(self._descriptors[index], nbytes)
        return self._buffers[index]


def _decode(payload: memoryview, descriptors: list[int]) -> Any:
    return _Unpickler(payload, descriptors).load() if descriptors else pickle.loads(payload)
