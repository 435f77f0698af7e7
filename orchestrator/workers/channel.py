"""A connection between the host and one worker: messages over a Unix socket pair."""

from __future__ import annotations

import array
import errno
import os
import resource
import select
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from orchestrator.workers.message import MAX_DESCRIPTORS, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

_HEADER = struct.Struct("!QI")  # payload bytes, descriptors
_ANCILLARY = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # where the system has it: nothing can come in between
_BUFFER = 1 << 16
"""Bytes that are received at once; room for a longer message is made when its header is there."""


class Channel:
    """One end of a connection, which blocks: the worker's. `HostChannel` is the other one."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        # What has come of the next messages.
        self._buffer = bytearray(_BUFFER)
        self._filled = 0
        self._descriptors: deque[list[int]] = deque()  # those of one message came together

    def send(self, message: object) -> None:
        """Blocks until the message is written."""
        self.forward(*encode(message))

    def forward(self, payload: bytes, descriptors: list[int]) -> None:
        """As `send`, of a message that is encoded already."""
        data = _HEADER.pack(len(payload), len(descriptors)) + payload
        sent = 0
        while sent < len(data):
            sent += self._send_some(data, sent, descriptors)

    def receive(self) -> Any:
        """Blocks until a message is there. Raises as `take`, and EOFError when the other end is closed."""
        while not self._is_complete():
            self._receive_some()
        return self.take()

    def receive_encoded(self) -> tuple[bytes, list[int]]:
        """As `receive`, without decoding the message: the descriptors are the caller's from now on."""
        while not self._is_complete():
            self._receive_some()
        return self._take(lambda payload, descriptors: (bytes(payload), descriptors))

    def arrives(self, seconds: float) -> bool:
        """Whether `receive` has something to read within so many seconds; several messages may have come at once."""
        if self._is_complete():
            return True
        readable = select.poll()
        readable.register(self.socket, select.POLLIN)
        return bool(readable.poll(seconds * 1000))

    def take(self) -> Any:
        """The first of the messages that have come whole.

        Raises what unpickling it raises, and OSError where this process had no file descriptors left for its memory:
        then the message is lost, and those that follow are not.
        """
        return self._take(decode)

    def _take(self, decoded: Callable[[memoryview, list[int]], Any]) -> Any:
        size, count = _HEADER.unpack_from(self._buffer)
        end = _HEADER.size + size
        descriptors = self._descriptors.popleft() if count else []
        try:
            if len(descriptors) < count:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise _too_many_open_files(count)
            return decoded(memoryview(self._buffer)[_HEADER.size : end], descriptors)
        finally:  # also a message that cannot be unpickled is done with
            if self._filled == end and len(self._buffer) == _BUFFER:
                self._filled = 0
            else:
                self._replace_buffer(max(_BUFFER, self._filled - end), end)

    def _framed(self, message: object) -> tuple[bytes, list[int]]:
        payload, descriptors = encode(message)
        return _HEADER.pack(len(payload), len(descriptors)) + payload, descriptors

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
        if self._filled == len(self._buffer):  # a whole message that nobody has taken yet
            self._replace_buffer(self._filled + _BUFFER, 0)
        room = memoryview(self._buffer)[self._filled :]
        count, ancillary, flags, _ = self.socket.recvmsg_into([room], _ANCILLARY, _CLOSE_ON_EXEC)
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if descriptors or flags & socket.MSG_CTRUNC:  # fewer have come than were sent, or none
            self._descriptors.append(list(descriptors))
        if not count:
            raise EOFError
        self._filled += count

    def _replace_buffer(self, size: int, begin: int) -> None:
        """A buffer of `size` with what had come from `begin` on."""
        rest = self._buffer[begin : self._filled]
        self._buffer = rest + bytes(size - len(rest))
        self._filled = len(rest)


def _too_many_open_files(needed: int) -> OSError:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OSError(
        errno.EMFILE,
        f"process {os.getpid()} was sent {needed} pieces of shared memory, and has fewer file descriptors left: at "
        f"most {limit} may be open at a time; raise the limit (RLIMIT_NOFILE, `ulimit -n`), or have fewer files open",
    )
