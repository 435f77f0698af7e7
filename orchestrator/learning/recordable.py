"""Settings with which minibatches can't be recorded: they compute in another way, or wait for others amid one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.paths import PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.settings import TrainerConfig


def settings_against_graphs(config: TrainerConfig) -> Iterator[object]:
    """By their paths."""
    for setting, given in (
        (PATH.learning.compile, config.learning.compile),
        (PATH.cells, config.cells > 1),
        (PATH.learning.shards, (config.learning.shards or 1) > 1),
        (PATH.policy.by_type, config.policy.by_type),
    ):
        if given:
            yield setting
