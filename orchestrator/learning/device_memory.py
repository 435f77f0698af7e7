"""How much memory of its device the learner has in use."""

from __future__ import annotations

import torch


def peak_memory(device: torch.device) -> int | None:
    """Bytes that tensors of this process have taken there at most so far; None where the device keeps no account: on a
    CPU, whose memory `system/run_memory` tells about."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
