"""The frozen state of a run at one event: what every loss callback and every hook is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from state.frozen_mapping import FrozenMapping, freeze

if TYPE_CHECKING:
    from state.eval_rewards import EvalRewardSummary
    from state.experience import Experience
    from state.policy_snapshot import PolicySnapshot
    from state.stats_tracker import StatsTracker
    from state.stopwatch import StopwatchReading


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """Counters, nine fields that are None until they are known, and the hooks' results. Deeply immutable; no copies.

    Safe to keep and to read from any task or thread: the views of experience and policy keep their memory. Mappings
    that it is made with are frozen. Two states are equal when all fields are, the stopwatch's reading too.
    """

    epoch: int = 0
    """Epochs completed; during an epoch, its index."""
    agent_step: int = 0
    """Transitions of single environments, collected up to the epoch that this state speaks of."""
    update_epoch: int = 0
    """Passes over the current batch: its index during training, how many were made afterwards."""
    mb_idx: int = 0
    """Minibatches within the update epoch: as above."""
    policy_version: int = 0
    """The policy that the event is about: in on_rollout_... the one that collects, afterwards the one just published
    (versions are counted; 0 is the policy before training)."""

    rollout_stats: Mapping[str, tuple[float, ...]] | None = None
    """The epoch's values under each name: of the episodes that ended in it, of an environment's logs, or of collectors;
    known before `on_rollout_end`."""
    loss_stats: Mapping[str, float] | None = None
    """Means over the epoch's minibatches; known before `on_epoch_end`."""
    eval_scores: EvalRewardSummary | None = None
    """The newest evaluation; known in the first state published after it ended."""
    experience: Experience | None = None
    """The epoch's experience; known before `on_rollout_end`."""
    policy: PolicySnapshot | None = None
    """The newest published policy; in `on_epoch_end` the one that the epoch produced."""
    latest_checkpoint_uri: str | None = None
    """The newest committed checkpoint."""
    latest_wandb_uri: str | None = None
    """The newest upload to Weights & Biases."""
    stats_tracker: StatsTracker | None = None
    """Episode statistics over the run so far; known before `on_rollout_end`."""
    timer: StopwatchReading | None = None
    """The run's stopwatch, read when this state was made."""

    results: Mapping[str, object] | None = None
    """What hooks have published, by their own names."""

    def __post_init__(self) -> None:
        for name in _MAPPINGS:
            mapping: Mapping[str, object] | None = getattr(self, name)
            if mapping is not None and type(mapping) is not FrozenMapping:
                object.__setattr__(self, name, freeze(mapping))


_MAPPINGS = ("rollout_stats", "loss_stats", "results")
