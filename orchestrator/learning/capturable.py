"""What of a learner can be recorded once and repeated: code that always does the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from orchestrator.config.paths import PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from losses import Loss, LossSet
    from orchestrator.policies import Policy

_PLAIN = (bool, int, float, str)
_DEPTH = 2


def why_not_capturable(policy: Policy, losses: LossSet) -> str:
    """What keeps minibatches from being recorded, with what to do about it; empty where nothing does."""
    if not _declared(policy.network, "forward"):
        return (
            f"the network {type(policy.network).__name__} does not say that it can be recorded: set capturable = True"
            " in its class if its forward always does the same operations, and reads nothing from the device"
        )
    for loss in losses.losses:
        if not _declared(loss, "compute"):
            return (
                f"the loss {loss.name!r} does not say that it can be recorded: set capturable = True in its class if"
                " its compute always does the same operations, keeps no tensor, and reads nothing from the device"
            )
    if losses.observers:
        names = ", ".join(repr(member.name) for member in losses.observers)
        return f"observe of {names} is called for each minibatch, in Python: leave it out of {PATH.losses.names}"
    return ""


def numbers_of(losses: Sequence[Loss]) -> list[object]:
    """The numbers and texts that losses have as attributes, such as their coefficients, and which tensors: a recording
    has them as they were."""
    found: list[object] = []
    for loss in losses:
        _collect(loss, _DEPTH, found)
    return found


def _declared(thing: Loss | nn.Module, method: str) -> bool:
    """Whether the class that defines the method, or one that is derived from it, says that it is capturable."""
    for cls in type(thing).__mro__:
        if "capturable" in vars(cls):
            return bool(vars(cls)["capturable"])
        if method in vars(cls):
            return False
    return False


def _collect(thing: object, depth: int, found: list[object]) -> None:
    for name, value in vars(thing).items():
        if isinstance(value, _PLAIN) and name != "stop_requested":
            found.append((name, value))
        elif isinstance(value, torch.Tensor):
            found.append((name, id(value), value.data_ptr()))
        elif depth > 1 and name not in ("schedule", "_context") and hasattr(value, "__dict__"):
            _collect(value, depth - 1, found)
