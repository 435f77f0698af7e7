"""What the workers of a run and the memory between them are doing, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from state.frozen_mapping import FrozenMapping

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.workers.worker import WorkerStatistics
    from state.shared_memory import SlotRingStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStatistics:
    """By the names of workers and of rings of slots; empty until the workers have started."""

    workers: Mapping[str, WorkerStatistics] = field(default_factory=FrozenMapping)
    slots: Mapping[str, SlotRingStatistics] = field(default_factory=FrozenMapping)
