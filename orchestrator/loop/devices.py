"""Which device a worker uses, where the settings leave it open."""

from __future__ import annotations


def resolve_device(device: str) -> str:
    """The device that `auto` stands for here: mps is only taken when asked for, since nobody has measured it yet."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of_cell(device: str, cell: int, *, elsewhere: bool) -> str:
    """Where a cell learns: where one device is not named, each has its own, as long as there are so many; on another
    machine, the one that it is given there."""
    if elsewhere:
        return device.partition(":")[0]
    if device != "cuda":
        return device
    import torch

    return f"cuda:{cell % torch.cuda.device_count()}"
