"""The record of one epoch: every metric by its stable name. docs/metrics.md lists them with unit and meaning."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.environments.agents import policies_in
from orchestrator.hooks.included.learning_problems import KINDS, problems_of
from orchestrator.hooks.statistics import HookStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.metrics.sink import Record
    from state.eval_rewards import EvalRewardSummary
    from state.policy_snapshot import PolicySnapshot
    from state.stopwatch import StopwatchReading
    from state.trainer_state import TrainerState

EXPERIENCE = (
    "value",
    "return",
    "reward",
    "advantage",
    "advantage_std",
    "explained_variance",
    "policy_age",
    "behavior_kl",
    "behavior_ratio_std",
)
POLICY = ("entropy", "approx_kl", "clip_fraction")
_OF_HOOKS = tuple(field.name for field in fields(HookStatistics) if field.name != "state")


def metrics(
    state: TrainerState,
    hooks: Mapping[str, HookStatistics] | None = None,
    extra: Mapping[str, float] | None = None,
) -> Record:
    """The epoch's record; numbers that are not finite become None.

    `hooks` tells how each hook keeps up, `extra` is what was measured elsewhere, under its full names.
    """
    tracker, timer = state.stats_tracker, state.timer
    record: dict[str, float | None] = {
        "epoch": state.epoch,
        "agent_step": state.agent_step,
        "policy_version": state.policy_version,
        "sps": None if timer is None else timer.lap_rate("agent_step"),
        "time/seconds": None if timer is None else timer.seconds,
        "rollout/episode_return": None,
        "rollout/episode_length": None,
    }
    if tracker is not None:
        record |= {f"rollout/{name}": mean for name, mean in tracker.means().items()}
        record["rollout/episodes"] = tracker.episodes
        record["rollout/recent_return"] = tracker.recent_mean("episode_return")
        record["rollout/recent_length"] = tracker.recent_mean("episode_length")
    scores = state.eval_scores
    record["overview/reward"] = record.get("rollout/recent_return")
    record["overview/sps"] = record["sps"]
    record["overview/score"] = None
    if state.loss_stats is not None:
        record |= _losses(state.loss_stats)
    record["policy/update_epochs"] = state.update_epoch
    record["policy/minibatches"] = state.mb_idx
    if state.experience is not None:
        # The epoch was learned from starting with the version before the one just published.
        record["experience/staleness"] = state.policy_version - 1 - state.experience.policy_version
    if scores is not None:
        record |= score_metrics(scores)
    problems = problems_of(state)
    if problems is not None:
        record |= {f"warnings/{kind}": float(kind in problems) for kind in KINDS}
    if timer is not None:
        record |= _times(timer)
        if "exchange_bytes" in timer.lap_counts:
            record["time/exchange_bytes"] = timer.lap_counts["exchange_bytes"]
    for name, hook in (hooks or {}).items():
        record |= {f"hook/{name}/{field}": getattr(hook, field) for field in _OF_HOOKS}
        record[f"hook/{name}/hidden_seconds"] = hook.hidden_seconds
    record |= extra or {}
    return {name: value if value is None or math.isfinite(value) else None for name, value in record.items()}


def score_metrics(scores: EvalRewardSummary) -> Record:
    """What a record says of an evaluation, and of which policy that was."""
    return {
        **scores.metrics(),
        "overview/score": scores.avg_category_score,
        "eval/policy_version": scores.policy_version,
        "eval/epoch": scores.epoch,
    }


def _losses(stats: Mapping[str, float]) -> dict[str, float | None]:
    """All that the learner tells by its own names, and what all algorithms have under names that are the same."""
    record: dict[str, float | None] = {f"loss/{name}": value for name, value in stats.items()}
    record |= {f"experience/{name}": stats[name] for name in EXPERIENCE if name in stats}
    for wanted in POLICY:
        value = statistic(stats, wanted)
        if value is not None:
            record[f"policy/{wanted}"] = value
    if "device_memory_peak" in stats:
        record["system/device_memory_peak"] = stats["device_memory_peak"]
    for policy in policies_in(stats):
        record |= {
            f"experience/{policy}/{name}": value
            for name in EXPERIENCE
            if (value := stats.get(f"{policy}/{name}")) is not None
        }
        for wanted in POLICY:
            if (value := statistic(stats, wanted, policy)) is not None:
                record[f"policy/{policy}/{wanted}"] = value
    record["policy/gradient_norm"] = stats.get("gradient_norm")
    record["policy/learning_rate"] = stats.get("learning_rate")
    return record


def statistic(stats: Mapping[str, float], name: str, policy: str | None = None) -> float | None:
    """What the first loss that tracks something as `name` says, of all agents or a policy's; None where none does."""
    of = "" if policy is None else f"{policy}/"
    return next((value for full, value in stats.items() if full.startswith(of) and full.endswith(f"/{name}")), None)


def _times(timer: StopwatchReading) -> dict[str, float | None]:
    """Each activity's seconds of the epoch; of the main ones also since the start, and the share of the epoch."""
    lap = timer.lap_seconds
    record: dict[str, float | None] = {"time/epoch": lap}
    for name, seconds in timer.lap_timer_seconds.items():
        record[f"time/{name}"] = seconds
        if name in ("collect", "learn"):
            record[f"time/{name}_total"] = timer.timer_seconds.get(name)
            record[f"time/{name}_fraction"] = seconds / lap if lap > 0 else None
    if "learn" in timer.lap_timer_seconds:
        record["time/wait"] = wait = max(0.0, lap - timer.lap_timer_seconds["learn"])
        record["time/wait_total"] = max(0.0, timer.seconds - timer.timer_seconds.get("learn", 0.0))
        record["time/wait_fraction"] = wait / lap if lap > 0 else None
    return record


def weight_norm(policy: PolicySnapshot) -> float:
    """The Euclidean norm of all trainable parameters."""
    total = 0.0
    memory = policy.memory.readonly()
    for dtype, begin, end in policy.layout.trainable:
        kind = np.dtype(dtype)
        # What lies between the tensors of a group is zero.
        weights = np.frombuffer(memory, dtype=kind, count=(end - begin) // kind.itemsize, offset=begin)
        total += float(np.vdot(weights, weights))
    return math.sqrt(total)
