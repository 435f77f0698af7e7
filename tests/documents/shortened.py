"""Runs a program of the documents as `python PROGRAM` does, with trainings that end after some epochs.

python -m tests.documents.shortened PROGRAM
"""

from __future__ import annotations

import functools
import inspect
import runpy
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from orchestrator import Hook, Trainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator import TrainerConfig
    from state.trainer_state import TrainerState

EPOCHS = 24
"""Enough for what the documents do every 20 epochs."""


class StopAfter(Hook):
    """Stops the run after so many epochs, as its user could."""

    overflow = "block"

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            self.run.stop("it was to be short")


def small(config: TrainerConfig) -> TrainerConfig:
    """`config` with epochs of few steps."""
    few = replace(config.collection, num_environments=8, horizon=16)
    return replace(config, collection=few)


def shorten_trainings(epochs: int = EPOCHS) -> list[Trainer]:
    """From now on, trainers check their settings, and their runs are stopped after a while; the list is of them."""
    made: list[Trainer] = []
    original = Trainer.__init__

    @functools.wraps(original)
    def shorter(self: Trainer, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        self.config = small(self.config)
        self.hooks.append(StopAfter(epochs))
        made.append(self)

    Trainer.__init__ = shorter
    return made


def started(trainer: Trainer) -> bool:
    with suppress(RuntimeError):
        return trainer.current_run is not None
    return False


def needs_nothing(value: object) -> bool:
    """Whether it is a coroutine function that can be called without arguments."""
    if not inspect.iscoroutinefunction(value):
        return False
    parameters = inspect.signature(value).parameters.values()
    return all(parameter.default is not parameter.empty for parameter in parameters)


def run_all_of(names: dict[str, Any], made: Sequence[Trainer]) -> None:
    """What the code of a page has defined and not run: trainers that it has not started, and coroutine functions that
    need no arguments. (What needs some is tested with them, page by page.)"""
    for trainer in made:
        if not started(trainer):
            anyio.run(trainer.run)
    for name, value in names.items():
        if name != "main" and needs_nothing(value):
            anyio.run(value)


if __name__ == "__main__":
    program = sys.argv[1]
    sys.path.insert(0, str(Path(program).parent.absolute()))
    sys.argv = [program]
    shorten_trainings()
    runpy.run_path(program, run_name="__main__")
