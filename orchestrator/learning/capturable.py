"""What of a learner can be recorded once and repeated: code that always does the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from numbers import Number
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from orchestrator.config.paths import PATH
from orchestrator.policies.capturable import declares, why_network_not_capturable

if TYPE_CHECKING:
    from losses import Loss, LossSet
    from orchestrator.policies import Policy

_PLAIN = (Number, str, bytes, np.generic, type(None))
_NO_SETTINGS = ("stop_requested", "schedule", "_context", "_stops_when", "_latest")
"""What the learner looks at for itself, and what losses that share a computation have found last."""
_DEPTH = 4
"""How many attributes of attributes, or things within things, are looked into."""


def why_not_capturable(policy: Policy, losses: LossSet) -> str:
    """What keeps minibatches from being recorded, with what to do about it; empty where nothing does."""
    reason = why_network_not_capturable(policy.network)
    if reason:
        return reason
    for loss in losses.losses:
        if not declares(loss, "compute"):
            return (
                f"the loss {loss.name!r} does not say that it can be recorded: set capturable = True in its class if"
                " its compute always does the same operations, keeps no tensor, and reads nothing from the device"
            )
    if losses.observers:
        names = ", ".join(repr(member.name) for member in losses.observers)
        return f"observe of {names} is called for each minibatch, in Python: leave it out of {PATH.losses.names}"
    return ""


def numbers_of(losses: Sequence[Loss]) -> list[object]:
    """The numbers and texts that losses have in their attributes, such as their coefficients, and which tensors: a
    recording has them as they were."""
    found: list[object] = []
    for loss in losses:
        _collect_attributes(loss, _DEPTH, found)
    return found


def _collect_attributes(thing: object, depth: int, found: list[object]) -> None:
    slots = [name for cls in type(thing).__mro__ for name in _names(vars(cls).get("__slots__", ()))]
    for name in (*getattr(thing, "__dict__", ()), *slots):
        if name not in _NO_SETTINGS:
            found.append(name)
            _collect(getattr(thing, name, None), depth, found)


def _collect(value: Any, depth: int, found: list[object]) -> None:
    if isinstance(value, _PLAIN):
        found.append(value)
    elif isinstance(value, torch.Tensor):
        found.append((id(value), value.data_ptr()))
    elif isinstance(value, np.ndarray):
        found.append(cast("Any", value).tobytes())
    elif depth == 0 or isinstance(value, type):
        return
    elif isinstance(value, Mapping):
        for part in cast("Mapping[object, object]", value).items():
            _collect(part, depth - 1, found)
    elif isinstance(value, (Sequence, AbstractSet)):
        for part in cast("Sequence[object]", value):
            _collect(part, depth - 1, found)
    else:
        _collect_attributes(value, depth - 1, found)


def _names(slots: str | Sequence[str]) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else slots
