"""Networks, environments and hooks that hang, and the command with less patience: `python -m tests.orchestrator.hanging
train ...`. What hangs writes a file called `hangs` into the working directory first."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import torch
from torch import Tensor

from orchestrator import Hook
from tests.orchestrator.training import FailingEnvironment
from tests.small_networks import Shared

if TYPE_CHECKING:
    from orchestrator.policies.network import Observation, Spaces
    from state.trainer_state import TrainerState


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


SLOW_SECONDS = 1.5


class SlowNetwork(Shared):
    """Notes in files called `slow-N` that it has begun with minibatch N."""

    def __init__(self, spaces: Spaces) -> None:
        super().__init__(spaces)
        self._minibatches = 0

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            Path(f"slow-{self._minibatches}").touch()
            self._minibatches += 1
            time.sleep(SLOW_SECONDS)
        return super().forward(observation)


class SlowEnvironment(FailingEnvironment):
    def step(self, action: Any) -> Any:
        Path(f"slow-{self._steps}").touch()
        time.sleep(SLOW_SECONDS)
        return super().step(action)


def slow_network(spaces: Spaces) -> SlowNetwork:
    return SlowNetwork(spaces)


def slow_environment(**options: Any) -> SlowEnvironment:
    return SlowEnvironment(**options)


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


class PlainHook(Hook):
    def __init__(self, *_: object) -> None: ...

    def on_epoch_end(self, state: TrainerState) -> None:  # type: ignore[override]
        hang()


class PoolHook(Hook):
    def __init__(self, *_: object) -> None: ...

    async def on_epoch_end(self, state: TrainerState) -> None:
        await anyio.to_thread.run_sync(hang)


def main() -> int:
    """`--hanging-hook NAME` at the end runs the hook of that name instead of the progress."""
    import orchestrator.command.run_script as script
    import orchestrator.loop.run_parts
    from orchestrator.__main__ import main

    script.EPOCH_GRACE = 0.2
    script.GRACE = 1.0
    script.END_SECONDS = 8.0
    orchestrator.loop.run_parts.ANSWER_SECONDS = 3.0
    words = sys.argv[1:]
    if words[-2] == "--hanging-hook":
        script.ProgressHook = {"PlainHook": PlainHook, "PoolHook": PoolHook}[words[-1]]  # type: ignore[misc]
        words = [*words[:-2], "--metrics.progress", "plain"]
    return main(words)


if __name__ == "__main__":
    sys.exit(main())
