"""Checks of what `learning.graphs` goes with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.paths import PATH, problem_with
from orchestrator.config.reads import reads
from orchestrator.learning.recordable import settings_against_graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.error import Problem
    from orchestrator.config.settings import TrainerConfig


@reads(PATH.learning.graphs, PATH.learning.compile, PATH.learning.shards, PATH.cells, PATH.policy.by_type)
def graph_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Where they are asked for, but can't be had."""
    if config.learning.graphs is not True:
        return
    for setting in settings_against_graphs(config):
        yield problem_with(
            config,
            PATH.learning.graphs,
            expected=f"auto or false with {setting} = {_shown(config, setting)}: such minibatches can't be recorded",
            cure=f"set it to one of them, or leave {setting} out",
        )


def _shown(config: TrainerConfig, setting: object) -> object:
    value = problem_with(config, setting, expected="", cure="").value
    return f"{len(value)} policies" if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownArgumentType]
