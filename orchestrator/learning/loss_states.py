"""What the losses' callbacks see of the memory that the learner works with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.policies import build_policy
from state.experience import Experience
from state.policy_snapshot import PolicySnapshot

if TYPE_CHECKING:
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.learning.messages import LearnRequest
    from orchestrator.policies import Spaces
    from state.experience import ExperienceSpec
    from state.policy_snapshot import PolicyLayout
    from state.shared_memory import BufferView
    from state.trainer_state import TrainerState


def with_experience(
    request: LearnRequest, config: TrainerConfig, cell: int, spec: ExperienceSpec, view: BufferView
) -> TrainerState:
    """The request's state with the experience of the epoch: on several machines, what the cell's has."""
    here, machines = (range(1), 1) if config.cluster is None else (range(cell, cell + 1), config.cells)
    behavior = request.behavior
    experience = Experience(
        spec, request.state.epoch, behavior.version, view, behavior.minibatches, cells=here, of_cells=machines
    )
    return replace(request.state, experience=experience)


def published_policy(
    config: TrainerConfig, spaces: Spaces, version: int, layout: PolicyLayout, view: BufferView
) -> PolicySnapshot:
    """A version that has been published to the memory of `view`."""
    factory = partial(build_policy, config.policy, spaces, config.seed, config.learning.discount)
    return PolicySnapshot(version, layout, factory, view)
