"""Which checkpoints stay: rules that are put together, each of which names what it wants to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from orchestrator.checkpoints.checkpoint import Checkpoint
    from orchestrator.config.settings import CheckpointsConfig


class Retention(Protocol):
    """A rule. A folder keeps more than it asks for: the newest, what is protected, and what is being read."""

    def wanted(self, checkpoints: Sequence[Checkpoint]) -> set[Path]:
        """The paths of those to keep, of all there are, oldest first."""
        ...


@dataclass(frozen=True, slots=True)
class KeepAll:
    """Nothing is ever deleted."""

    def wanted(self, checkpoints: Sequence[Checkpoint]) -> set[Path]:
        return {checkpoint.path for checkpoint in checkpoints}


@dataclass(frozen=True, slots=True)
class KeepLast:
    """The newest `count`."""

    count: int

    def wanted(self, checkpoints: Sequence[Checkpoint]) -> set[Path]:
        return {checkpoint.path for checkpoint in checkpoints[max(0, len(checkpoints) - self.count) :]}


@dataclass(frozen=True, slots=True)
class KeepBest:
    """The `count` with the largest or smallest `metric`, of those that have it; the newer of equal ones."""

    count: int
    metric: str
    mode: Literal["max", "min"] = "max"

    def wanted(self, checkpoints: Sequence[Checkpoint]) -> set[Path]:
        sign = 1.0 if self.mode == "max" else -1.0
        scored = [
            (sign * float(value), place, checkpoint.path)
            for place, checkpoint in enumerate(checkpoints)
            if isinstance(value := checkpoint.metrics.get(self.metric), (int, float))
        ]
        return {path for _, _, path in sorted(scored, reverse=True)[: self.count]}


@dataclass(frozen=True, slots=True)
class KeepEvery:
    """Those of every `epochs`-th epoch."""

    epochs: int

    def wanted(self, checkpoints: Sequence[Checkpoint]) -> set[Path]:
        return {checkpoint.path for checkpoint in checkpoints if checkpoint.epoch % self.epochs == 0}


@dataclass(frozen=True, slots=True)
class KeepAny:
    """What any of several rules wants."""

    rules: tuple[Retention, ...]

    def wanted(self, checkpoints: Sequence[Checkpoint]) -> set[Path]:
        return {path for rule in self.rules for path in rule.wanted(checkpoints)}


def retention_of(config: CheckpointsConfig) -> Retention:
    """The rules that a configuration asks for."""
    if not config.keep:
        return KeepAll()
    rules: list[Retention] = [KeepLast(config.keep)]
    if config.keep_best and config.best_metric is not None:
        rules.append(KeepBest(config.keep_best, config.best_metric, config.best_mode))
    if config.keep_every:
        rules.append(KeepEvery(config.keep_every))
    return KeepAny(tuple(rules))
