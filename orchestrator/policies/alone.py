"""The policy of the agents of one type alone, taken out of one that has several: with their own spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from gymnasium import spaces as gymnasium_spaces
from torch import Tensor, nn

from orchestrator.environments.joint_spaces import SEEN, used_parameters
from orchestrator.policies.by_type import NetworksByType
from orchestrator.policies.network import NetworkError, Observation, Spaces
from orchestrator.policies.policy import Policy

if TYPE_CHECKING:
    from orchestrator.environments.spaces import Space


def policy_alone(policy: Policy, name: str, observation: Space, action: Space) -> Policy:
    """What the part of `policy` that is called `name` does, with the agent's spaces of `observation` and `action`; it
    shares the network.

    Raises NetworkError where the network is one for other observations.
    """
    networks = cast("NetworksByType", policy.network)
    place = networks.names.index(name)
    network, trained = networks.network_of(place), networks.spaces[place]
    if observation != trained.observation:
        raise NetworkError(f"the policy of {name} observes {trained.observation}, not {observation}")
    if action != trained.action:
        used = torch.from_numpy(used_parameters(action, trained.action, along_others=0))
        network = _OwnParameters(network, used.nonzero().squeeze(1))
        if isinstance(action, gymnasium_spaces.MultiBinary):  # it has learned a choice among two for each bit
            action = gymnasium_spaces.MultiDiscrete(np.full(action.shape, 2).ravel())
    alone = Policy(Spaces(observation, action), network)
    if policy.observation_normalizer is not None:
        alone.observation_normalizer = policy.observation_normalizer.of_part(f"{SEEN}/{name}", observation)
    return alone


class _OwnParameters(nn.Module):
    """A network of which only the action parameters in `columns` are the agent's."""

    columns: Tensor

    def __init__(self, network: nn.Module, columns: Tensor) -> None:
        super().__init__()
        self.network = network
        self.state_size = getattr(network, "state_size", None)
        self.register_buffer("columns", columns)

    def forward(self, observation: Observation, *memory: Tensor) -> Any:
        parameters, *rest = self.network(observation, *memory)
        return parameters.index_select(-1, self.columns), *rest
