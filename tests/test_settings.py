"""The documented settings: every file is sound, and the memory task is learned by the network that has a memory."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator import StateUpdate, Trainer
from orchestrator.checks.configuration import check_config
from orchestrator.config.file import read_config
from tests.paths import PROJECT

if TYPE_CHECKING:
    from state.trainer_state import TrainerState

SETTINGS = sorted((PROJECT / "scripts" / "settings").glob("*.toml"))


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_the_settings_of_each_file_work_together(path: Path) -> None:
    # In another environment, since those of the extras need not be installed.
    check_config(replace(read_config(path), environment="CartPole-v1"))


def best_mean_return(network: str, total_agent_steps: int, enough: float) -> float:
    """The greatest mean return over 100 episodes until the end, or until it is `enough`.

    Where exactly a network learns the task depends on the rounding of the processor; that it does, must not.
    """
    memory = next(path for path in SETTINGS if path.stem == "memory")
    config = read_config(memory)
    config = replace(config, total_agent_steps=total_agent_steps, policy=replace(config.policy, network=network))
    trainer = Trainer(config)
    best = -math.inf

    @trainer.on_epoch_end(overflow="block")
    async def watch(state: TrainerState) -> StateUpdate:
        nonlocal best
        assert state.stats_tracker is not None
        best = max(best, state.stats_tracker.recent_mean("episode_return") or -math.inf)
        return StateUpdate(stop=best > enough)

    anyio.run(trainer.run)
    return best


def test_what_a_network_without_memory_cannot_do_the_lstm_learns() -> None:
    assert best_mean_return("lstm", total_agent_steps=150_000, enough=0.8) > 0.8
    assert best_mean_return("mlp", total_agent_steps=30_000, enough=0.8) < 0.6, "chance is 0, its deviation 0.1"
