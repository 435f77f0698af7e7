"""Which code can be recorded once and repeated by a device: what always does the same. Only its author knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.policies.by_type import NetworksByType

if TYPE_CHECKING:
    from torch import nn


def declares(thing: object, method: str) -> bool:
    """Whether the class that defines the method, or one that is derived from it, says that it is capturable."""
    for cls in type(thing).__mro__:
        if "capturable" in vars(cls):
            return bool(vars(cls)["capturable"])
        if method in vars(cls):
            return False
    return False


def why_network_not_capturable(network: nn.Module, method: str = "forward") -> str:
    """What keeps a method of the network from being recorded, with what to do about it; empty where nothing does."""
    parts = network.networks.values() if isinstance(network, NetworksByType) else (network,)
    for part in parts:
        if not declares(part, method):
            return (
                f"the network {type(part).__name__} does not say that it can be recorded: set capturable = True in its"
                f" class if its {method} always does the same operations, and reads nothing from the device"
            )
    return ""
