"""The networks of several policies as one: each decides for its own agents, whose observations are in `JointSpaces`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from gymnasium import spaces as gymnasium_spaces
from torch import Tensor, nn

from orchestrator.config.paths import PATH
from orchestrator.environments.joint_spaces import POLICY, SEEN, USED
from orchestrator.policies.network import NetworkError, Observation, Spaces

if TYPE_CHECKING:
    from collections.abc import Callable

_ZERO_ENTROPY = -0.5 * (1.0 + math.log(2.0 * math.pi))
"""The log standard deviation with which a normal number has the entropy 0."""


class NetworksByType(nn.Module):
    """One network for each policy of `spaces`, as `make` makes it for a policy's name and the spaces of its agents.

    All networks see all rows, and each row takes what its own gives: with blank observations for the others, no shape
    depends on the data. It has memory where one of them has: the state is theirs, one after another.

    Raises NetworkError for spaces of agents that all have one policy.
    """

    def __init__(self, spaces: Spaces, make: Callable[[str, Spaces], nn.Module]) -> None:
        super().__init__()
        seen = _own_parts(spaces)
        self.networks = nn.ModuleDict(
            {f"{name}_network": make(name, Spaces(observation, spaces.action)) for name, observation in seen.items()}
        )
        self._names = tuple(seen)
        self._sizes = [int(getattr(network, "state_size", None) or 0) for network in self.networks.values()]
        self.state_size = sum(self._sizes) or None
        self._numbers = isinstance(spaces.action, gymnasium_spaces.Box)

    def forward(
        self, observation: Observation, state: Tensor | None = None, episode_start: Tensor | None = None
    ) -> Any:
        """As a `Network`, or a `RecurrentNetwork` where it has a `state_size`."""
        observation = cast("dict[str, Tensor]", observation)
        policy = observation[POLICY]
        parameters = value = torch.empty(0)
        states = None if state is None else state.split(self._sizes, -1)
        following: list[Tensor] = []
        for place, (name, network) in enumerate(zip(self._names, self.networks.values(), strict=True)):
            part = _part(observation, name)
            if states is None:
                own_parameters, own_value = network(part)
            elif self._sizes[place]:
                own_parameters, own_value, after = network(part, states[place], episode_start)
                following.append(after)
            else:
                steps = (
                    part.flatten(0, 1) if isinstance(part, Tensor) else {k: x.flatten(0, 1) for k, x in part.items()}
                )
                own_parameters, own_value = (x.unflatten(0, policy.shape) for x in network(steps))
            own_value = own_value.reshape(policy.shape)
            if place == 0:
                parameters, value = own_parameters, own_value
            else:
                own = policy == place
                parameters = torch.where(own.unsqueeze(-1), own_parameters, parameters)
                value = torch.where(own, own_value, value)
        if USED in observation:
            used = observation[USED] != 0
            nobody = ~used.any(-1, keepdim=True)  # the blank observation of an agent that is out
            parameters = self._without(parameters, ~(used | nobody))
        return (parameters, value) if state is None else (parameters, value, torch.cat(following, -1))

    def _without(self, parameters: Tensor, unused: Tensor) -> Tensor:
        """Action parameters that learn and mean nothing where they are `unused`."""
        if not self._numbers:
            return parameters.masked_fill(unused, -math.inf)
        (mean, log_std), (no_mean, no_log_std) = parameters.chunk(2, -1), unused.chunk(2, -1)
        return torch.cat((mean.masked_fill(no_mean, 0.0), log_std.masked_fill(no_log_std, _ZERO_ENTROPY)), -1)

    def rows(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`[...]` by key of the observation: where that part of it is the row's own."""
        policy = observation[POLICY]
        places = {key: self._names.index(key.split("/")[1]) for key in observation if key.startswith(f"{SEEN}/")}
        return {key: policy == place for key, place in places.items()}


def _own_parts(spaces: Spaces) -> dict[str, gymnasium_spaces.Space[Any]]:
    """What the agents of each policy observe, by its name."""
    whole = spaces.observation
    if not isinstance(whole, gymnasium_spaces.Dict) or POLICY not in whole.spaces:
        raise NetworkError(
            f"the observation space {whole} does not say whose policy decides; expected that of an environment made for"
            f" {PATH.policy.by_type}"
        )
    names = sorted({key.split("/")[1] for key in whole if key.startswith(f"{SEEN}/")})
    found: dict[str, gymnasium_spaces.Space[Any]] = {}
    for name in names:
        key = f"{SEEN}/{name}"
        own = {part.removeprefix(f"{key}/"): space for part, space in whole.items() if part.startswith(f"{key}/")}
        found[name] = whole[key] if key in whole.spaces else gymnasium_spaces.Dict(own)
    return found


def _part(observation: Mapping[str, Tensor], name: str) -> Observation:
    key = f"{SEEN}/{name}"
    if key in observation:
        return observation[key]
    return {part.removeprefix(f"{key}/"): x for part, x in observation.items() if part.startswith(f"{key}/")}
