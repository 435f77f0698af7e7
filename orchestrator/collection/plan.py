"""What one of a run's collectors is made from: its share of the environments, its seed, where its policy acts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from orchestrator.config.settings import TrainerConfig
from orchestrator.environments import Adaptation
from orchestrator.environments.shard import CopiesPlan
from orchestrator.environments.split import SplitPlan
from orchestrator.policies.cnn import has_images
from orchestrator.policies.network import Spaces
from orchestrator.workers.cores import available_cores


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorPlan:
    """Which of a run's collectors one is."""

    config: TrainerConfig
    index: int = 0
    restarts: int = 0
    """Times that it was replaced."""
    device: str = "cpu"
    """That of the configuration for acting; where it says `auto`, where it learns: see `acts_on`."""

    @property
    def name(self) -> str:
        return f"collector-{self.index}"

    @property
    def games(self) -> int:
        """Copies of the environment."""
        return self.config.collection.num_environments // self.config.collection.collectors

    def acts_on(self, spaces: Spaces) -> torch.device:
        """Where its policy acts: for images, a GPU is faster; for less, it would be told what to do in more time than a
        CPU takes to do it."""
        on_cpu = self.config.collection.device == "auto" and not has_images(spaces.observation)
        return torch.device("cpu" if on_cpu else self.device)

    def copies(self) -> CopiesPlan:
        """What its copies of the environment are made of."""
        config = self.config.collection
        steppers = config.collectors * max(1, config.environment_workers)
        return CopiesPlan(
            environment=self.config.environment,
            options=config.environment_options,
            mode=config.mode,
            adaptation=replace(Adaptation.of(self.config), threads=max(1, available_cores() // steppers)),
            first_copy=self.index * self.games,
            copies_of_run=config.num_environments,
        )

    def split(self, waits_for: Callable[[str], None]) -> SplitPlan:
        """How its copies are split; `waits_for` is told which environment worker it waits for."""
        config = self.config.collection
        return SplitPlan(
            workers=config.environment_workers,
            groups=config.environment_groups,
            backend=config.backend,
            name=self.name,
            seed=self.seed,
            step_timeout=config.step_timeout,
            waits_for=waits_for,
        )

    @property
    def seed(self) -> int:
        """Of the environments and the actions: collectors draw from streams of their own, and a restarted one must
        not repeat its first episodes."""
        return self.config.seed + 1_000_003 * self.index + 7_919 * self.restarts
