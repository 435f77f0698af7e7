"""Notices attributes of networks and losses that change in the course of training, though no checkpoint has them."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from losses import LearnerCallback

if TYPE_CHECKING:
    from orchestrator.policies import Policy

_LARGEST = 2**22
"""Bytes of an attribute beyond which it is not looked at; about 10 ms."""
_PART = 2**12
"""Bytes that each part of a container counts for besides its tensors and arrays, since a look at it takes as long."""
_DEEPEST = 20
_SHOWN = 5


class UnsavedAttributes:
    """Call `changed` when learning begins, and then whenever a checkpoint is made; it takes milliseconds.

    Looked at are plain values, tensors, arrays, generators, and containers of those. What was None or not there when
    it was looked at last has been made when it was first needed, which is no change.
    """

    def __init__(self, policy: Policy, network: str, losses: Sequence[LearnerCallback]) -> None:
        self._network, self._name = policy.network, network
        self._losses = [loss for loss in losses if type(loss).state_dict is LearnerCallback.state_dict]
        self._saved = {id(module) for module in policy.modules()}
        self._before: dict[str, bytes] = {}
        self._told: set[str] = set()

    def changed(self) -> dict[str, str]:
        """A warning, by what it is about, of attributes that have changed since the last call; of each only once."""
        found = {path: mark for path, value in self._attributes() if (mark := self._mark(value)) is not None}
        changed = [
            path for path, mark in found.items() if self._before.get(path, mark) != mark and path not in self._told
        ]
        self._before = found
        self._told.update(changed)
        if not changed:
            return {}
        shown = ", ".join(changed[:_SHOWN]) + (f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else "")
        return {
            f"unsaved attributes {shown}": (
                f"{shown} changed in the course of training, but no checkpoint has them, so that they begin anew when"
                " the run is resumed: make them buffers of the network (tensors, by register_buffer), or give the loss"
                " state_dict and load_state_dict"
            )
        }

    def _attributes(self) -> Iterator[tuple[str, object]]:
        for path, module in self._network.named_modules():
            of_torch = type(module).__module__.partition(".")[0] == "torch"
            for name, value in vars(module).items():
                if name not in _OF_MODULES and not (of_torch and name.startswith("_")):
                    yield f"{f'{path}.' if path else ''}{name} of the network {self._name!r}", value
        for loss in self._losses:
            for name, value in vars(loss).items():
                if name not in _OF_LOSSES:
                    yield f"{name} of the loss {loss.name!r}", value

    def _mark(self, value: object) -> bytes | None:
        """Equal for equal values; None for None, and for what is not looked at."""
        digest = hashlib.sha256()
        if value is None or not self._feed(digest.update, value, [_LARGEST]):
            return None
        return digest.digest()

    def _feed(self, update: Callable[[bytes], None], value: Any, left: list[int], depth: int = 0) -> bool:
        """Whether all of a value is plain."""
        left[0] -= _PART + (value.nbytes if isinstance(value, np.ndarray) else 0)
        if left[0] < 0 or depth > _DEEPEST:
            return False
        match value:
            case int():
                update(f"{value:x};".encode())  # Python refuses to write very large ones as decimals
                return True
            case None | float() | complex() | str() | bytes():
                update(f"{type(value).__name__} {value!r};".encode())
                return True
            case Tensor():
                # What needs gradients is a parameter, or an output that was kept for a loss.
                if value.requires_grad or value.layout is not torch.strided or value.is_meta or value.nbytes > left[0]:
                    return False
                memory = value.cpu().contiguous().reshape(-1).view(torch.uint8)
                return self._feed(update, memory.numpy(), left, depth + 1)
            case np.ndarray() | np.generic():
                if value.dtype.hasobject:
                    return False
                update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
                return True
            case torch.Generator():
                return self._feed(update, value.get_state(), left, depth + 1)
            case np.random.Generator():
                return self._feed(update, value.bit_generator.state, left, depth + 1)
            case random.Random():
                update(repr(value.getstate()).encode())
                return True
            case nn.Module():  # of a loss
                return id(value) not in self._saved and self._feed(update, dict(value.state_dict()), left, depth + 1)
            case dict():
                update(b"{")
                pairs = cast("dict[object, object]", value).items()
                return all(self._feed(update, part, left, depth + 1) for pair in pairs for part in pair)
            case list() | tuple() | deque():
                update(b"[")
                items = cast("Sequence[object]", value)
                return all(self._feed(update, item, left, depth + 1) for item in items)
            case set() | frozenset():
                parts = cast("set[object]", value)
                return len(parts) * _PART <= left[0] and self._feed(update, sorted(map(repr, parts)), left, depth + 1)
            case _:
                return False


_OF_MODULES = frozenset(vars(nn.Module()))
_OF_LOSSES = frozenset(vars(LearnerCallback(name="any")))
