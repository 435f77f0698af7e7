"""What is known about a run: its frozen state, experience, policy snapshots and statistics."""

from __future__ import annotations

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
