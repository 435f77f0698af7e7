"""The documented settings: every file is sound, and the memory task is learned by the network that has a memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from orchestrator import Trainer
from orchestrator.config_check import check_config
from orchestrator.config_file import read_config

SETTINGS = sorted((Path(__file__).parents[1] / "scripts" / "settings").glob("*.toml"))


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_the_settings_of_each_file_work_together(path: Path) -> None:
    # In another environment, since those of the extras need not be installed.
    check_config(replace(read_config(path), environment="CartPole-v1"))


def mean_return(network: str) -> float:
    memory = next(path for path in SETTINGS if path.stem == "memory")
    config = read_config(memory)
    config = replace(config, total_agent_steps=30_000, policy=replace(config.policy, network=network))
    final = anyio.run(Trainer(config).run)
    assert final.stats_tracker is not None
    return final.stats_tracker.recent_mean("episode_return") or 0.0


def test_what_a_network_without_memory_cannot_do_the_lstm_learns() -> None:
    assert mean_return("lstm") > 0.8
    assert mean_return("mlp") < 0.5
