"""What a policy's network must be: the spaces it serves and the protocols that an own `nn.Module` can meet."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import gymnasium
from torch import Tensor, nn

from orchestrator.policies.distributions import distribution_for
from state.error import OrchestratorError

if TYPE_CHECKING:
    from orchestrator.environments.vector import VectorEnvironment

Observation: TypeAlias = Tensor | dict[str, Tensor]
"""A batch of observations: one tensor, or one per key of a Dict space."""


def copied(observation: Observation) -> Observation:
    """The same in separate memory, for a network that may change it."""
    if isinstance(observation, dict):
        return {key: tensor.clone() for key, tensor in observation.items()}
    return observation.clone()


def one_step(observation: Observation) -> Observation:
    """`[n, 1, ...]` of `[n, ...]`, as a network with memory takes it."""
    if isinstance(observation, dict):
        return {key: tensor[:, None] for key, tensor in observation.items()}
    return observation[:, None]


@contextmanager
def evaluating(network: nn.Module) -> Generator[None]:
    """The network in evaluation mode; afterwards each of its modules is in the mode that it was in."""
    learning = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in learning:
            module.training = True


class NetworkError(OrchestratorError, ValueError):
    """The policy's network is unknown, cannot be made, or does not fit the spaces."""


@dataclass(frozen=True, slots=True)
class Spaces:
    """What one agent observes and what it can do."""

    observation: gymnasium.Space[Any]
    action: gymnasium.Space[Any]
    masked: bool = False
    """Whether the environment says for each action which choices are possible: see `VectorEnvironment.action_mask`."""

    @classmethod
    def of(cls, environment: VectorEnvironment) -> Spaces:
        """Those of an environment's agent."""
        masked = environment.action_mask is not None
        return cls(environment.observation_space, environment.action_space, masked)

    @property
    def action_parameters(self) -> int:
        """Numbers that a network must give per action: choices of a Discrete, all choices of a MultiDiscrete, bits of a
        MultiBinary, mean and log standard deviation of each number of a Box."""
        return distribution_for(self.action).parameters


class Network(Protocol):
    """A network without memory."""

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Action parameters `[batch, P]` and value `[batch]` (or `[batch, 1]`) of observations `[batch, ...]`."""
        ...


@runtime_checkable
class SeparateNetwork(Protocol):
    """What a network without memory may have besides `forward`: action parameters and values each on their own.

    Collectors then act with `action_parameters` alone, and compute all values of a rollout in one batch.
    """

    def action_parameters(self, observation: Observation) -> Tensor:
        """`[batch, P]`."""
        ...

    def value(self, observation: Observation) -> Tensor:
        """`[batch]` or `[batch, 1]`."""
        ...


class RecurrentNetwork(Protocol):
    """A network with memory; what makes it one is that it has `state_size`."""

    state_size: int
    """Numbers of state that the network carries from step to step, at least 1."""

    def forward(self, observation: Observation, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Action parameters `[batch, time, P]`, values `[batch, time]` and the state after the last step `[batch, S]`.

        Observations are `[batch, time, ...]`; `state` `[batch, S]` is the one before the first step; where
        `episode_start` `[batch, time]` is True, the state is 0 before that step.
        """
        ...
