"""What is known about a run: its frozen state, experience, policy snapshots and statistics.

Names are imported when they are first used: `state.error` is needed where torch must not be imported yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from state.lazy_names import lazy_names

if TYPE_CHECKING:
    from state.error import OrchestratorError as OrchestratorError
    from state.eval_rewards import EvalRewardSummary as EvalRewardSummary
    from state.experience import Experience as Experience
    from state.experience import ExperienceSpec as ExperienceSpec
    from state.experience import ExperienceSpecError as ExperienceSpecError
    from state.experience import FieldSpec as FieldSpec
    from state.frozen_mapping import FrozenMapping as FrozenMapping
    from state.frozen_mapping import freeze as freeze
    from state.policy_snapshot import PolicySnapshot as PolicySnapshot
    from state.shared_memory import SlotRingStatistics as SlotRingStatistics
    from state.stats_tracker import StatsTracker as StatsTracker
    from state.stopwatch import Stopwatch as Stopwatch
    from state.stopwatch import StopwatchReading as StopwatchReading
    from state.trainer_state import TrainerState as TrainerState
else:
    __getattr__, __dir__ = lazy_names(__name__)
