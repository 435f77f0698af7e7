"""Messages as bytes and file descriptors: pickled objects, shared memory as descriptors.

A `SharedBuffer` anywhere inside a message travels as its descriptor, so bulk data is never copied through here.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import cloudpickle

from orchestrator.workers.program import main_is_known_to_workers
from state.shared_memory import SharedBuffer

MAX_DESCRIPTORS = 64
"""Shared buffers that one message can carry."""


def encode(message: object) -> tuple[bytes, list[int]]:
    """The message's bytes and descriptors; the latter stay the buffers' own."""
    plain = _encode_plainly(message)
    # Lambdas, closures and classes of a notebook's cells have no importable name: they travel by value.
    if plain is None or (b"__main__" in plain[0] and not main_is_known_to_workers()):
        return _encode_by(_ByValuePickler, message)
    return plain


def decode(payload: memoryview, descriptors: list[int]) -> Any:
    """The message, whose buffers own the descriptors from now on."""
    return _Unpickler(payload, descriptors).load() if descriptors else pickle.loads(payload)


_NOT_PLAIN = (pickle.PicklingError, AttributeError, TypeError)


def _encode_plainly(message: object) -> tuple[bytes, list[int]] | None:
    try:
        return pickle.dumps(message, pickle.HIGHEST_PROTOCOL), []
    except _NOT_PLAIN:
        pass  # most messages have no memory in them, and looking for it calls Python for every object
    try:
        return _encode_by(_Pickler, message)
    except _NOT_PLAIN:
        return None


def _encode_by(kind: type[_Pickler | _ByValuePickler], message: object) -> tuple[bytes, list[int]]:
    stream = io.BytesIO()
    pickler = kind(stream, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.descriptors = []
    pickler.dump(message)
    if len(pickler.descriptors) > MAX_DESCRIPTORS:
        raise ValueError(f"a message can carry {MAX_DESCRIPTORS} shared buffers, not {len(pickler.descriptors)}")
    return stream.getvalue(), pickler.descriptors


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
