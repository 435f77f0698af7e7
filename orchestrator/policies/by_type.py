"""The networks of several policies as one: each decides for its own agents, whose observations are in `JointSpaces`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch
from gymnasium import spaces as gymnasium_spaces
from torch import Tensor, nn
from torch.compiler import is_exporting

from orchestrator.config.paths import PATH
from orchestrator.environments.joint_spaces import POLICY, SEEN, USED
from orchestrator.policies.network import NetworkError, Observation, SeparateNetwork, Spaces

if TYPE_CHECKING:
    from collections.abc import Callable

_ZERO_ENTROPY = -0.5 * (1.0 + math.log(2.0 * math.pi))
"""The log standard deviation with which a normal number has the entropy 0."""


@dataclass(frozen=True, slots=True)
class OwnRows:
    """Which rows of a batch are whose."""

    of: tuple[Tensor | slice, ...]
    """By policy."""
    back: Tensor | None = None
    """The place of each row among those of all policies, one policy after another; None where they are in that
    order."""

    @classmethod
    def found(cls, policy: Tensor, count: int) -> OwnRows:
        """By the place `[n]` of each row's policy among `count` of them. On a device, this waits for it."""
        of = rows_of(policy, count)
        order = torch.cat(of)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return cls(of, back)

    @classmethod
    def in_order(cls, counts: Sequence[int], times: int = 1) -> OwnRows:
        """Of a batch in which so many rows of each policy follow one another, times so many."""
        return cls(in_order([count * times for count in counts]))


def rows_of(policy: Tensor, count: int) -> tuple[Tensor, ...]:
    """The rows of each of `count` policies, by the place `[n]` of each row's. On a device, this waits for it."""
    return tuple((policy == place).nonzero().squeeze(1) for place in range(count))


def in_order(counts: Sequence[int]) -> tuple[slice, ...]:
    """So many rows of each policy that follow one another."""
    ends = list(accumulate(counts))
    return tuple(slice(end - count, end) for count, end in zip(counts, ends, strict=True))


class NetworksByType(nn.Module):
    """One network for each policy of `spaces`, as `networks_by_type` makes it.

    Each computes only the rows of its own agents. It has memory where one of them has: the state is theirs, one after
    another.
    """

    def __init__(self, spaces: Spaces, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({f"{name}_network": network for name, network in networks.items()})
        self.names = tuple(networks)
        """Of the policies."""
        self.spaces = tuple(Spaces(seen, spaces.action) for seen in _own_parts(spaces).values())
        """Of their networks."""
        sizes = [int(getattr(network, "state_size", None) or 0) for network in networks.values()]
        self._memory = in_order(sizes)
        self.state_size = sum(sizes) or None
        self._numbers = isinstance(spaces.action, gymnasium_spaces.Box)

    def forward(
        self,
        observation: Observation,
        state: Tensor | None = None,
        episode_start: Tensor | None = None,
        rows: OwnRows | None = None,
    ) -> Any:
        """As a `Network`, or a `RecurrentNetwork` where it has a `state_size`. `rows`: whose the rows are, if known."""
        if state is None:
            parameters, value = self._joined(observation, rows, self._without_memory)
            return self._possible(observation, parameters), value
        assert episode_start is not None
        parameters, value, following = self._joined(
            observation,
            rows,
            lambda place, part, own: self._with_memory(place, part, state[own], episode_start[own]),
        )
        return self._possible(observation, parameters), value, following

    def own_rows(self, observation: Observation) -> OwnRows:
        """Which rows of the `observation` are whose. On a device, this waits for it."""
        return OwnRows.found(policy_of(observation), len(self.names))

    def observed_by(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`[...]` by key of the observation: where that part of it is the row's own."""
        policy = observation[POLICY]
        places = {key: self.names.index(key.split("/")[1]) for key in observation if key.startswith(f"{SEEN}/")}
        return {key: policy == place for key, place in places.items()}

    def network_of(self, place: int) -> nn.Module:
        return self.networks[f"{self.names[place]}_network"]

    def _joined(
        self, observation: Observation, rows: OwnRows | None, call: Callable[[int, Observation, Any], Sequence[Tensor]]
    ) -> list[Tensor]:
        """What `call` gives for the place of each policy, its part of the observation, and its rows: each row's own."""
        observation = cast("dict[str, Tensor]", observation)
        if is_exporting():  # a graph has no shapes that depend on the data: each computes all rows
            policy, everyone = policy_of(observation), slice(None)
            joined = list(call(0, _part(observation, self.names[0], everyone), everyone))
            for place in range(1, len(self.names)):
                outputs = call(place, _part(observation, self.names[place], everyone), everyone)
                own = policy == place
                joined = [
                    torch.where(own.view(-1, *(1,) * (old.dim() - 1)), new, old)
                    for new, old in zip(outputs, joined, strict=True)
                ]
            return joined
        rows = rows or self.own_rows(observation)
        each = [
            call(place, _part(observation, self.names[place], own), own)
            for place, own in enumerate(rows.of)
            if (own.stop - own.start if isinstance(own, slice) else len(own))
        ]
        joined = [torch.cat(outputs) for outputs in zip(*each, strict=True)] if len(each) > 1 else list(each[0])
        return joined if rows.back is None else [tensor.index_select(0, rows.back) for tensor in joined]

    def _without_memory(self, place: int, part: Observation, own: Any) -> tuple[Tensor, Tensor]:
        parameters, value = self.network_of(place)(part)
        return parameters, value.reshape(parameters.shape[:-1])

    def _with_memory(self, place: int, part: Observation, state: Tensor, episode_start: Tensor) -> tuple[Tensor, ...]:
        """What one network gives, and the whole state after it."""
        memory = self._memory[place]
        if memory.start == memory.stop:
            steps = part.flatten(0, 1) if isinstance(part, Tensor) else {k: x.flatten(0, 1) for k, x in part.items()}
            parameters, value = (x.unflatten(0, episode_start.shape) for x in self.network_of(place)(steps))
            return parameters, value.reshape(episode_start.shape), state
        parameters, value, after = self.network_of(place)(part, state[:, memory], episode_start)
        following = torch.cat((state[:, : memory.start], after, state[:, memory.stop :]), -1)
        return parameters, value.reshape(episode_start.shape), following

    def _possible(self, observation: Observation, parameters: Tensor) -> Tensor:
        """Those that a row's own action does not have learn and mean nothing."""
        observation = cast("dict[str, Tensor]", observation)
        if USED not in observation:
            return parameters
        used = observation[USED] != 0
        nobody = ~used.any(-1, keepdim=True)  # of an observation of zeros
        unused = ~(used | nobody)
        if not self._numbers:
            return parameters.masked_fill(unused, -math.inf)
        (mean, log_std), (no_mean, no_log_std) = parameters.chunk(2, -1), unused.chunk(2, -1)
        return torch.cat((mean.masked_fill(no_mean, 0.0), log_std.masked_fill(no_log_std, _ZERO_ENTROPY)), -1)


class SeparateNetworksByType(NetworksByType):
    """The same where each of them is a `SeparateNetwork`, so that this is one."""

    def action_parameters(self, observation: Observation, rows: OwnRows | None = None) -> Tensor:
        def of_one(place: int, part: Observation, own: Any) -> tuple[Tensor]:
            return (cast("SeparateNetwork", self.network_of(place)).action_parameters(part),)

        return self._possible(observation, self._joined(observation, rows, of_one)[0])

    def value(self, observation: Observation, rows: OwnRows | None = None) -> Tensor:
        def of_one(place: int, part: Observation, own: Any) -> tuple[Tensor]:
            value = cast("SeparateNetwork", self.network_of(place)).value(part)
            return (value.squeeze(-1) if value.dim() > 1 else value,)

        return self._joined(observation, rows, of_one)[0]


def networks_by_type(spaces: Spaces, make: Callable[[str, Spaces], nn.Module]) -> NetworksByType:
    """What `make` makes for each policy of `spaces`, for its name and the spaces of its agents.

    Raises NetworkError for spaces of agents that all have one policy.
    """
    networks = {name: make(name, Spaces(seen, spaces.action)) for name, seen in _own_parts(spaces).items()}
    separate = all(
        isinstance(network, SeparateNetwork) and not getattr(network, "state_size", None)
        for network in networks.values()
    )
    return (SeparateNetworksByType if separate else NetworksByType)(spaces, networks)


def policy_of(observation: Observation) -> Tensor:
    """`[n]`: the place of the policy of each row, whose time axis, if it has one, is of one agent."""
    policy = cast("dict[str, Tensor]", observation)[POLICY]
    return policy if policy.dim() == 1 else policy[:, 0]


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


def _part(observation: Mapping[str, Tensor], name: str, rows: Tensor | slice) -> Observation:
    """What the agents of one policy observe, of their rows."""
    key = f"{SEEN}/{name}"

    def taken(tensor: Tensor) -> Tensor:
        return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)

    if key in observation:
        return taken(observation[key])
    return {part.removeprefix(f"{key}/"): taken(x) for part, x in observation.items() if part.startswith(f"{key}/")}
