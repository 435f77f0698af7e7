"""Writes safetensors piece by piece, straight from the memory in which the tensors are.

The library writes either into memory, which costs as much again, or to a file by itself, of which we would not know
the hash. What is made here is byte for byte what it makes (format: safetensors' README, "Format").
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

# The format's names, and the library's order of tensors in a file, which keeps all of them aligned.
_NAMES = ("U64", "I64", "F64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL")
_TYPES = {np.dtype("?" if name == "BOOL" else f"{name[0].lower()}{int(name[1:]) // 8}"): name for name in _NAMES}


def tensor_file(arrays: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
    """The pieces of a safetensors file that torch can read; `arrays` must not change until the last one is written.

    Raises TypeError for an array whose type the format does not have.
    """
    unknown = {name: array.dtype for name, array in arrays.items() if array.dtype not in _TYPES}
    if unknown:
        raise TypeError(f"safetensors has no type for {unknown}")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    order = {dtype: place for place, dtype in enumerate(_TYPES)}
    ordered = sorted(arrays.items(), key=lambda item: (order[item[1].dtype], item[0]))
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype], "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, array in ordered:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
