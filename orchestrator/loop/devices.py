"""Which device a worker uses, where the settings leave it open."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.config.settings import TrainerConfig


def resolve_device(device: str) -> str:
    """The device that `auto` stands for here: mps is only taken when asked for, since nobody has measured it yet."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def acting_device(config: TrainerConfig, cell: int, *, elsewhere: bool) -> str:
    """Where the collectors of a cell act, if they act on a device."""
    device = resolve_device(config.device if config.collection.device == "auto" else config.collection.device)
    return device if config.cells == 1 else device_of_cell(device, cell, elsewhere=elsewhere)


def device_of_cell(device: str, cell: int, *, elsewhere: bool) -> str:
    """Where a cell works: where one device is not named, each has its own, as long as there are so many; on another
    machine, the one that it is given there."""
    if elsewhere:
        return device.partition(":")[0]
    if device != "cuda":
        return device
    import torch

    return f"cuda:{cell % torch.cuda.device_count()}"
