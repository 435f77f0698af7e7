"""The numbers that the learner's network is computed with. Weights, the optimizer, losses and statistics are float32
whatever the precision."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

import torch

from orchestrator.config.paths import PATH
from state.error import OrchestratorError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_TF32_CAPABILITY = (8, 0)
"""NVIDIA's Ampere, the first that has it, as it has bfloat16."""


class PrecisionError(OrchestratorError, ValueError):
    """The device can't compute with the precision; the message names both, and what to set instead."""


class Precision:
    """`learning.precision` on a device: `on_network` is the context in which a network is called.

    tf32 is a switch of the whole process, set here and set back by `close`. Raises PrecisionError where the GPU is too
    old for the precision, which would be ignored or emulated there.
    """

    def __init__(self, precision: Literal["float32", "tf32", "bfloat16"], device: torch.device) -> None:
        if precision != "float32" and device.type == "cuda":
            _check_capability(precision, device)
        self.on_network: AbstractContextManager[object] = nullcontext()
        self._before: str | None = None
        if precision == "tf32":
            self._before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
        elif precision == "bfloat16":
            # Entered once for each minibatch: it remembers the weights that it has converted until it is left.
            self.on_network = torch.autocast(device.type, torch.bfloat16)

    def close(self) -> None:
        """Leave the process as it was."""
        if self._before is not None:
            torch.set_float32_matmul_precision(self._before)
            self._before = None


def _check_capability(precision: str, device: torch.device) -> None:
    capability = torch.cuda.get_device_capability(device)
    if capability < _TF32_CAPABILITY:
        raise PrecisionError(
            f"{PATH.learning.precision} is {precision!r}, which {torch.cuda.get_device_name(device)} ({device}, compute"
            f" capability {'.'.join(map(str, capability))}) can't compute with; expected a GPU of compute capability"
            f" {'.'.join(map(str, _TF32_CAPABILITY))} or above: set it to float32"
        )
