"""The memory that a run needs: said at its start, and in the error of a worker that gets none."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from orchestrator.config.paths import PATH
from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Generator

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.learning.messages import LearnerDescription
    from state.experience import ExperienceSpec

# Of errors that have no type of their own: the CPU's, Metal's, those of CUDA's libraries, numpy's out of a process.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|unable to allocate|ALLOC_FAILED", re.IGNORECASE)
_SIZED = ("auto", "mlp", "lstm", "tokens")
"""Networks that have hidden sizes."""


class OutOfMemory(OrchestratorError, RuntimeError):
    """A worker has got no memory on its device: the message says who wanted how much, and which settings lower it."""


def memory_needed(config: TrainerConfig, spec: ExperienceSpec, learner: LearnerDescription) -> str:
    """What a run allocates, in words for the log."""
    needs = [
        f"{config.versions_behind + 1} epochs of experience of {_size(spec.nbytes)} each",
        f"{config.versions_behind + 2} policies of {_size(learner.layout.nbytes)}",
        f"the optimizer's moments of {_size(learner.moments_nbytes)} for each snapshot",
    ]
    held = f"and at most {config.collection.held_epochs} more of both while hooks hold them"
    text = f"memory: in shared memory {', '.join(needs)}, {held} ({PATH.collection.held_epochs})"
    if config.cells > 1 and config.cluster is None:  # as `SharedSums` has it
        text += f", and 2 gradients of {_size(learner.layout.learned_nbytes)} for each of {config.cells} cells"
    if learner.device_nbytes is not None:
        text += f"; on {learner.device} the learner has {_size(learner.device_nbytes)} before its first minibatch"
    return text


@contextmanager
def out_of_memory_named(config: TrainerConfig, worker: str) -> Generator[None]:
    """Raises OutOfMemory for what the `worker` raises when it gets no memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, OrchestratorError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        raised_by = "".join(f" ({note})" for note in getattr(error, "__notes__", ()) if note.startswith("raised by "))
        raise OutOfMemory(
            f"the {worker} ran out of memory: {str(error) or type(error).__name__}{raised_by}. What it needs is lower"
            f" with {_cures(config, worker)}"
        ) from error


def _cures(config: TrainerConfig, worker: str) -> str:
    collection, learning = config.collection, config.learning
    network = f"a smaller {PATH.policy.network} ({config.policy.network})"
    if config.policy.network in _SIZED:
        network = f"smaller {PATH.policy.hidden_sizes} ({list(config.policy.hidden_sizes)})"
    fewer = (
        f"fewer {PATH.collection.num_environments} ({collection.num_environments}), a shorter {PATH.collection.horizon}"
        f" ({collection.horizon}) or {network}"
    )
    if worker.startswith("learner"):
        return (
            f"more {PATH.learning.minibatches} ({learning.minibatches} in each pass, so that each is smaller), {fewer}"
        )
    elsewhere = "" if collection.device == "cpu" else f" or {PATH.collection.device} = 'cpu'"
    return f"fewer {PATH.collection.collectors} ({collection.collectors}) on one device{elsewhere}, {fewer}"


def _size(nbytes: int) -> str:
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= one:
            return f"{nbytes / one:.3g} {unit}"
    return f"{nbytes} B"
