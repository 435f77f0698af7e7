"""The random generators that a process has without asking: of `random`, numpy and torch.

The project's code draws from its own generators. Environments, networks and losses may not, so a worker that has a
process to itself seeds these and keeps them in checkpoints.
"""

from __future__ import annotations

import random
from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping


def seed_global_generators(seed: int) -> None:
    """Seed all of them; also those of every CUDA device."""
    words = np.random.SeedSequence(seed).generate_state(3, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


def global_generators() -> dict[str, Any]:
    """Their states as plain data."""
    version, words, gauss = random.getstate()
    state = {
        "random": (version, np.array(array("I", words)), gauss),  # which pickles faster than so many numbers
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().numpy(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state().numpy()
    return state


def set_global_generators(state: Mapping[str, Any]) -> None:
    """Take over what `global_generators` returned."""
    version, words, gauss = state["random"]
    random.setstate((version, tuple(map(int, words)), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.from_numpy(np.array(state["torch"])))
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(torch.from_numpy(np.array(state["cuda"])))


@contextmanager
def seeded_global_generators(seed: int) -> Generator[None]:
    """While entered they draw as `seed` says; afterwards they continue where they were."""
    before = global_generators()
    seed_global_generators(seed)
    try:
        yield
    finally:
        set_global_generators(before)
