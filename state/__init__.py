"""What is known about a run: its frozen state, experience, policy snapshots and statistics.

Names are imported when they are first used: `state.error` is needed where torch must not be imported yet.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from state.error import OrchestratorError
    from state.eval_rewards import EvalRewardSummary
    from state.experience import Experience, ExperienceSpec, ExperienceSpecError, FieldSpec
    from state.frozen_mapping import FrozenMapping, freeze
    from state.policy_snapshot import PolicySnapshot
    from state.stats_tracker import StatsTracker
    from state.stopwatch import Stopwatch, StopwatchReading
    from state.trainer_state import TrainerState

__all__ = [
    "EvalRewardSummary",
    "Experience",
    "ExperienceSpec",
    "ExperienceSpecError",
    "FieldSpec",
    "FrozenMapping",
    "OrchestratorError",
    "PolicySnapshot",
    "StatsTracker",
    "Stopwatch",
    "StopwatchReading",
    "TrainerState",
    "freeze",
]

_MODULES = {
    "EvalRewardSummary": "eval_rewards",
    "Experience": "experience",
    "ExperienceSpec": "experience",
    "ExperienceSpecError": "experience",
    "FieldSpec": "experience",
    "FrozenMapping": "frozen_mapping",
    "OrchestratorError": "error",
    "PolicySnapshot": "policy_snapshot",
    "StatsTracker": "stats_tracker",
    "Stopwatch": "stopwatch",
    "StopwatchReading": "stopwatch",
    "TrainerState": "trainer_state",
    "freeze": "frozen_mapping",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
