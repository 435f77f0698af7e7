"""A collector and its rollouts, without the rest of a run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.collection.collector import CollectReport
from orchestrator.collection.experience_fields import experience_fields
from orchestrator.collection.plan import CollectorPlan
from orchestrator.collection.service import CollectorService, CollectRequest
from orchestrator.config.settings import CollectionConfig, PolicyConfig, TrainerConfig
from orchestrator.policies import build_policy
from orchestrator.workers.interrupt import Interrupt
from orchestrator.workers.slots import SlotRef
from state.experience import ExperienceSpec
from state.parameter_arena import ParameterArena
from state.shared_memory import SharedBuffer

if TYPE_CHECKING:
    import numpy as np

COUNT, HORIZON, ROLLOUTS = 3, 40, 3
VARIANTS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "box actions": {"environment": "Pendulum-v1"},
    "lstm": {"policy": PolicyConfig(network="lstm", lstm_size=4)},
    "own network": {"policy": PolicyConfig(network="tests.small_networks:make_shared")},
    "own network with memory": {"policy": PolicyConfig(network="tests.small_networks:make_recurrent")},
    "cut episodes": {"environment": "tests.environments:Wandering/SameStep-v0"},
    "images": {"environment": "tests.environments:make_wandering", "environment_options": {"observation": "image"}},
    "masked": {"environment": "tests.orchestrator.test_action_masks:make_maze", "action_mask": "action_mask"},
}


def collecting(
    environment_options: Any = None, graphs: bool = False, groups: int = 1, **settings: Any
) -> TrainerConfig:
    """Acts where the plan of a collector says."""
    collection = CollectionConfig(
        num_environments=COUNT,
        horizon=HORIZON,
        backend="inline",
        environment_options=environment_options or {},
        environment_groups=groups,
        device="cpu",
        graphs=graphs,
    )
    return TrainerConfig(collection=collection, **settings)


def experience(
    device: str, config: TrainerConfig, reports: list[CollectReport] | None = None
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """That of a few rollouts, each with other weights, in the middle of which the collector is resumed by another."""
    service = CollectorService(CollectorPlan(config=config, device=device), Interrupt())
    spaces = service.spaces()
    policy = build_policy(config.policy, spaces, 7)
    segments = config.collection.num_environments * len(service.agents())
    own = experience_fields(spaces, policy.state_size, refreshes=config.refreshes)
    spec = ExperienceSpec.merge(segments, HORIZON, {"": own})
    arena = ParameterArena(policy)
    weights, slot = SharedBuffer.create(arena.layout.nbytes), SharedBuffer.create(spec.nbytes)
    request = CollectRequest(SlotRef("experience", 0, slot), SlotRef("policy", 0, weights))
    found: list[dict[str, np.ndarray[Any, Any]]] = []
    service.prepare(spec)
    for rollout in range(ROLLOUTS):
        arena.write_to(weights.map_shared())
        report = service.collect(request)
        if reports is not None:
            reports.append(report)
        found.append({name: array.copy() for name, array in spec.arrays(slot.map_shared()).items()})
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.5)
        if rollout == 1:
            state = service.state()
            service.close()
            service = CollectorService(CollectorPlan(config=config, device=device), Interrupt())
            service.prepare(spec)
            service.load_state(state)
    service.close()
    return found


def with_graphs(config: TrainerConfig, graphs: bool) -> TrainerConfig:
    return dataclasses.replace(config, collection=dataclasses.replace(config.collection, graphs=graphs))
