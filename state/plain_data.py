"""Plain data as JSON and arrays: what a checkpoint keeps of generators, environments, losses and counters.

No code is stored and none is run on reading: numbers, text, None, lists, tuples, dicts with text keys, numpy arrays
without objects, and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

_ARRAY, _NUMBER, _TENSOR, _TUPLE = "$array", "$number", "$tensor", "$tuple"


def encode(value: object, arrays: dict[str, NDArray[Any]], where: str = "") -> Any:
    """`value` as JSON can say it; arrays go to `arrays` and are named in their place.

    Raises TypeError for the rest, and says `where` it is: also for subclasses of the plain types (members of
    enumerations, named tuples), which would come back as something else.
    """
    if type(value) in (bool, int, float, str, type(None)):
        return value
    match value:
        case np.ndarray() if not value.dtype.hasobject:
            return {_ARRAY: _add(arrays, value)}
        case np.generic() if not value.dtype.hasobject:
            return {_NUMBER: _add(arrays, np.asarray(value))}  # not as a Python number: these compute otherwise
        case torch.Tensor() if value.layout is torch.strided:
            flat = value.detach().cpu().contiguous()
            stored = _add(arrays, flat.reshape(-1).view(torch.uint8).numpy())
            return {_TENSOR: stored, "dtype": str(flat.dtype).removeprefix("torch."), "shape": list(flat.shape)}
        case list() | tuple() if type(cast(object, value)) in (list, tuple):
            items = [
                encode(item, arrays, f"{where}[{place}]")
                for place, item in enumerate(cast("list[object] | tuple[object, ...]", value))
            ]
            return items if isinstance(value, list) else {_TUPLE: items}
        case Mapping():
            table = cast("Mapping[object, object]", value)
            if not all(type(key) is str and not key.startswith("$") for key in table):
                raise TypeError(
                    f"the keys {list(table)} of {where or 'the state'} must be text that does not begin with $"
                )
            return {str(key): encode(item, arrays, f"{where}.{key}") for key, item in table.items()}
        case _:
            raise TypeError(
                f"{where or 'the state'} is {value!r} of type {type(value).__name__}, which is not plain data"
            )


def decode(data: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """What `encode` was given; arrays and tensors are copies."""
    if isinstance(data, list):
        return [decode(item, arrays) for item in cast("list[Any]", data)]
    if not isinstance(data, dict):
        return data
    table = cast("dict[str, Any]", data)
    if _ARRAY in table:
        return arrays[table[_ARRAY]].copy()
    if _NUMBER in table:
        return arrays[table[_NUMBER]][()]
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
