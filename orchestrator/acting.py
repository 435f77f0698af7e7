"""A policy that acts for several copies of an environment, and carries their recurrent state."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.environments.spaces import Observation as Arrays
from orchestrator.policies.network import Observation
from orchestrator.policies.policy import Policy


class Actor:
    """Acts for `count` copies at a time; call within `torch.inference_mode()`."""

    def __init__(self, policy: Policy, count: int) -> None:
        self.policy = policy
        self.state: Tensor | None = torch.zeros(count, policy.state_size) if policy.recurrent else None
        """`[count, state_size]`, None for a policy without memory."""

    def act(self, observation: Observation, episode_start: Tensor) -> tuple[Tensor, Tensor | None]:
        """Action parameters `[count, P]` and, where they come along, values `[count]`; moves the state on.

        `episode_start` `[count]` tells whose state is to be forgotten first.
        """
        if self.policy.separate:
            return self.policy.action_parameters(observation), None
        if self.state is None:
            parameters, value, _ = self.policy(observation)
            return parameters, value
        parameters, value, self.state = self.policy(_one_step(observation), self.state, episode_start[:, None])
        return parameters[:, 0], value[:, 0]

    def value(self, observation: Observation, state: Tensor | None = None) -> Tensor:
        """Values `[n]` of observations within an episode, after which `state` `[n, state_size]` came."""
        if self.policy.separate:
            return self.policy.value(observation)
        if state is None:
            return self.policy(observation)[1]
        no_start = torch.zeros(len(state), 1, dtype=torch.bool)
        return self.policy(_one_step(observation), state, no_start)[1][:, 0]

    def values(self, observations: Observation) -> Tensor:
        """Values `[n, time]` of observations `[n, time, ...]`, for a policy whose `act` gives none."""
        some = next(iter(observations.values())) if isinstance(observations, dict) else observations
        if isinstance(observations, dict):
            flat: Observation = {key: tensor.flatten(0, 1) for key, tensor in observations.items()}
        else:
            flat = observations.flatten(0, 1)
        return self.policy.value(flat).view(some.shape[:2])


def as_tensors(observation: Arrays) -> Observation:
    """The arrays as tensors over the same memory."""
    if isinstance(observation, dict):
        return {key: torch.from_numpy(array) for key, array in observation.items()}
    return torch.from_numpy(observation)


def _one_step(observation: Observation) -> Observation:
    if isinstance(observation, dict):
        return {key: tensor[:, None] for key, tensor in observation.items()}
    return observation[:, None]
