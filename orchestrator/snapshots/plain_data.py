"""Plain data as JSON beside arrays: what a checkpoint keeps of generators, environments, losses and counters.

No code is stored and none is run on reading: numbers, text, None, lists, tuples, dicts with text keys, numpy arrays
without objects, and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

_ARRAY, _TENSOR, _TUPLE = "$array", "$tensor", "$tuple"


def encode(value: object, arrays: dict[str, NDArray[Any]]) -> Any:
    """`value` as JSON can say it; arrays go to `arrays` and are named in their place. Raises TypeError for the rest."""
    match value:
        case bool() | str() | None:
            return value
        case int() | float() if type(value) in (int, float):
            return value
        case np.ndarray() if not value.dtype.hasobject:
            return {_ARRAY: _add(arrays, value)}
        case np.generic() if not value.dtype.hasobject:
            return value.item()
        case torch.Tensor():
            flat = value.detach().cpu().contiguous()
            stored = _add(arrays, flat.reshape(-1).view(torch.uint8).numpy())
            return {_TENSOR: stored, "dtype": str(flat.dtype).removeprefix("torch."), "shape": list(flat.shape)}
        case list():
            return [encode(item, arrays) for item in cast("list[object]", value)]
        case tuple():
            return {_TUPLE: [encode(item, arrays) for item in cast("tuple[object, ...]", value)]}
        case Mapping():
            items = cast("Mapping[object, object]", value)
            if not all(isinstance(key, str) and not key.startswith("$") for key in items):
                raise TypeError(f"the keys {list(items)} must be text that does not begin with $")
            return {str(key): encode(item, arrays) for key, item in items.items()}
        case _:
            raise TypeError(f"{value!r} of type {type(value).__name__} is not plain data")


def decode(data: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """What `encode` was given; arrays and tensors are copies."""
    if isinstance(data, list):
        return [decode(item, arrays) for item in cast("list[Any]", data)]
    if not isinstance(data, dict):
        return data
    table = cast("dict[str, Any]", data)
    if _ARRAY in table:
        return arrays[table[_ARRAY]].copy()
    if _TENSOR in table:
        kind: torch.dtype = getattr(torch, table["dtype"])
        return torch.from_numpy(arrays[table[_TENSOR]].copy()).view(kind).reshape(table["shape"])
    if _TUPLE in table:
        return tuple(decode(item, arrays) for item in table[_TUPLE])
    return {key: decode(item, arrays) for key, item in table.items()}


def _add(arrays: dict[str, NDArray[Any]], array: NDArray[Any]) -> str:
    name = str(len(arrays))
    arrays[name] = array
    return name
