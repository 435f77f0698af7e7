"""Puts the workers where a run begins: at its first policy, or where a checkpoint left them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from orchestrator.snapshots.resume import changes_on_resume
from orchestrator.snapshots.tensors import fill_moments, fill_policy
from orchestrator.workers.event_loop import in_thread
from state.policy_point import PolicyPoint

if TYPE_CHECKING:
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.loop.policy_versions import PolicyVersions
    from orchestrator.loop.snapshots import SnapshotTaker
    from orchestrator.loop.worker_group import WorkerGroup
    from orchestrator.snapshots.checkpoint_files import ResumePoint
    from orchestrator.snapshots.initial_weights import Weights

_log = logging.getLogger("orchestrator")


async def begin(workers: WorkerGroup, versions: PolicyVersions, weights: Weights | None) -> None:
    """The policy's first version is the learner's own, or has the weights that are given."""
    slot = versions.claim()
    if weights is None:
        await workers.publish(slot)
    else:
        await in_thread(fill_policy, workers.description.layout, slot.buffer.map_shared(), weights)
        await workers.restore_learner(slot, None, None)
    versions.add(PolicyPoint(0), slot)


async def resume_from(
    workers: WorkerGroup, versions: PolicyVersions, snapshots: SnapshotTaker, config: TrainerConfig, resume: ResumePoint
) -> None:
    """Put all workers where the checkpoint left them. Raises CheckpointError where it does not fit."""
    layout = workers.description.layout
    for point, arrays in sorted(resume.policies.items()):
        slot = versions.claim()
        await in_thread(fill_policy, layout, slot.buffer.map_shared(), arrays)
        versions.add(point, slot)
    moments = None
    if resume.moments is not None:
        moments = snapshots.claim_moments()
        await in_thread(fill_moments, layout, moments.buffer.map_shared(), resume.moments)
    collectors = [state for state in resume.collectors if state is not None]
    known = len(collectors) == config.collection.collectors == len(resume.collectors)
    why_new: str | None = "the run was cut short within an epoch"
    if known:
        why_new = await workers.restore_collectors(collectors)
    else:
        await workers.begin_new_episodes(resume.state.epoch)
    await workers.restore_learner(versions.slot(versions.newest), moments, resume.learner)
    if moments is not None:
        snapshots.release_moments(moments)
    for change in changes_on_resume(resume, config, why_new=why_new):
        _log.warning("resumed, but %s", change)
