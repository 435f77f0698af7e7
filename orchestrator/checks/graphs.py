"""Checks of what `learning.graphs` goes with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.paths import PATH, problem_with
from orchestrator.config.reads import reads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.error import Problem
    from orchestrator.config.settings import TrainerConfig


@reads(PATH.learning.graphs, PATH.learning.compile, PATH.learning.shards, PATH.cells, PATH.policy.by_type)
def graph_problems(config: TrainerConfig) -> Iterator[Problem]:
    """What is computed in another way with each of these, or waits for others in the middle of a minibatch."""
    if not config.learning.graphs:
        return
    for setting, given in (
        (PATH.learning.compile, config.learning.compile),
        (PATH.cells, config.cells > 1),
        (PATH.learning.shards, (config.learning.shards or 1) > 1),
        (PATH.policy.by_type, config.policy.by_type),
    ):
        if given:
            yield problem_with(
                config,
                PATH.learning.graphs,
                expected=f"false with {setting} = {_shown(config, setting)}: such minibatches can't be recorded",
                cure=f"set it to false, or leave {setting} out",
            )


def _shown(config: TrainerConfig, setting: object) -> object:
    value = problem_with(config, setting, expected="", cure="").value
    return f"{len(value)} policies" if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownArgumentType]
