"""Networks, environments and hooks that hang, and the command with less patience: `python -m tests.orchestrator.hanging
train ...`. What hangs writes a file called `hangs` into the working directory first."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.orchestrator.training import FailingEnvironment
from tests.small_networks import Shared

if TYPE_CHECKING:
    from orchestrator.policies.network import Observation, Spaces


def hang() -> None:
    Path("hangs").touch()
    while True:
        time.sleep(0.01)


class HangingNetwork(Shared):
    def __init__(self, spaces: Spaces, *, learning: bool, first: int) -> None:
        super().__init__(spaces)
        self._learning = learning
        self._left = first

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() == self._learning:
            self._left -= 1
            if self._left < 0:
                hang()
        return super().forward(observation)


def hangs_in_acting(spaces: Spaces) -> HangingNetwork:
    return HangingNetwork(spaces, learning=False, first=110)


def hangs_in_learning(spaces: Spaces) -> HangingNetwork:
    return HangingNetwork(spaces, learning=True, first=60)


def environment() -> FailingEnvironment:
    return FailingEnvironment()


class HangsAtTheStart(FailingEnvironment):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if Path("checked").exists():  # the check of the configuration has made one
            hang()
        Path("checked").touch()


def hangs_at_the_start() -> HangsAtTheStart:
    return HangsAtTheStart()


def main() -> int:
    import orchestrator.command.run_script as script
    import orchestrator.run
    from orchestrator.__main__ import main

    script.EPOCH_GRACE = 0.2
    orchestrator.run.ANSWER_SECONDS = 3.0
    return main()


if __name__ == "__main__":
    sys.exit(main())
