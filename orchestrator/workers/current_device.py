"""The device that a worker's process means where code names none."""

from __future__ import annotations

import torch


def make_current(device: str) -> None:
    """Have a process that works on a GPU other than the first mean that one where nobody says which: page-locking, the
    generators that checkpoints keep, a user's `tensor.cuda()`. Nothing is left on the first GPU then."""
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
