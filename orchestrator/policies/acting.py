"""A policy that acts for several copies of an environment, and carries their recurrent state.

Networks may change what they are given, and keep what they return: `ActingPolicy` gives away nothing that is still
needed, and keeps nothing but copies. Only the observations that `act` gets are not copied: their caller needs them no
more.

The policy may be on a device. What goes into it comes from the host's memory; what comes out stays on the device, but
for actions, until `on_host`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from orchestrator.environments.spaces import Array, ObservationArrays
from orchestrator.policies.distributions import ActionDistribution, Bernoulli, DiagonalGaussian, masked
from orchestrator.policies.network import Observation, copied, one_step
from orchestrator.policies.policy import Policy
from state.error import OrchestratorError

if TYPE_CHECKING:
    from orchestrator.environments.vector import VectorEnvironment
    from orchestrator.policies.by_type import OwnRows

# Rows that go through the network at once: their activations stay in the processor's cache, which halves the time
# of a batch of 65,536 rows.
_PART = 2048
_PART_ON_DEVICE = 16_384
"""The same on a device, where each part is a few launches and a copy."""
_SHOWN = 16


class PolicyFailed(OrchestratorError, RuntimeError):
    """The policy gave numbers that no action can be drawn from; the message has them, and says where."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message, step)
        self.step = step
        """Among those that were checked."""

    def __str__(self) -> str:
        return self.args[0]


_CPU = torch.device("cpu")


class Decision(NamedTuple):
    """What a policy does in a step."""

    parameters: Tensor
    """Of the distributions that the actions are drawn from, `[count, P]`."""
    value: Tensor | None
    """`[count]`, where it comes along."""
    action: Tensor
    """`[count, ...]`."""

    def copied(self) -> Decision:
        return Decision(*(None if tensor is None else tensor.clone() for tensor in self))  # pyright: ignore[reportArgumentType]

    def take(self, other: Decision) -> None:
        """Hold the same numbers, in the own memory."""
        for own, given in zip(self, other, strict=True):
            if own is not None and given is not None:
                own.copy_(given)


class ActingPolicy:
    """Acts for `count` copies at a time; call within `torch.inference_mode()`."""

    def __init__(self, policy: Policy, count: int, device: torch.device = _CPU) -> None:
        """The policy is on the `device` already."""
        self.policy = policy
        self.device = device
        self._part = _PART if device.type == "cpu" else _PART_ON_DEVICE
        self.state: Tensor | None = None
        """`[count, state_size]`, None for a policy without memory; always in the same place."""
        if policy.recurrent:
            with torch.inference_mode():
                self.state = torch.zeros(count, policy.state_size, device=device)
        self._own_rows: dict[int, OwnRows | None] = {}
        """Whose the rows are that `act` is called for, by the first of them: that does not change."""

    def act(
        self,
        observation: Observation,
        episode_start: Tensor,
        action_mask: Tensor | None = None,
        rows: slice | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Action parameters `[count, P]` and, where they come along, values `[count]`; moves the state on. With `rows`,
        only for these of the copies, whose observations and so on are given.

        `episode_start` `[count]` tells whose state is to be forgotten first. The parameters forbid what is False in the
        `action_mask` `[count, P]`. The observation may be another afterwards.
        """
        if self.device.type != "cpu":
            observation = self._there(observation)
            action_mask = None if action_mask is None else self.there(action_mask)
        first_row = 0 if rows is None else rows.start
        if first_row not in self._own_rows:
            self._own_rows[first_row] = self.policy.own_rows(observation)
        own = self._own_rows[first_row]
        if self.policy.separate:
            return masked(self.policy.action_parameters(observation, own), action_mask), None
        if self.state is None:
            parameters, value, _ = self.policy(observation, rows=own)
            return masked(parameters, action_mask), value
        state = self.state if rows is None else self.state[rows]
        starts = self.there(episode_start)[:, None].clone()
        parameters, value, following = self.policy(one_step(observation), state.clone(), starts, own)
        state.copy_(following)
        return masked(parameters[:, 0], action_mask), value[:, 0]

    def decide(
        self,
        observation: Observation,
        episode_start: Tensor,
        action_mask: Tensor | None,
        rows: slice | None,
        noise: Tensor,
    ) -> Decision:
        """As `act`, and the actions that `noise` `[count, ...]`, which is there already, draws from it."""
        parameters, value = self.act(observation, episode_start, action_mask, rows)
        return Decision(parameters, value, self.policy.distribution.sample(parameters, noise))

    @torch.inference_mode()
    def remember(self, state: Array | None) -> None:
        """Continue after a `state` `[count, state_size]` (None: with no memory of what was before)."""
        if self.state is not None:
            self.state.copy_(torch.zeros(()) if state is None else torch.from_numpy(state))

    def value(self, observation: Observation, state: Tensor | None = None) -> Tensor:
        """Values `[n]` of observations within an episode, after which `state` `[n, state_size]` came."""
        return self.policy.value(self._there(copied(observation)), None if state is None else state.clone())

    def values(self, observations: Observation) -> Tensor:
        """Values `[n, time]` of observations `[n, time, ...]`, for a policy whose `act` gives none."""
        if isinstance(observations, dict):
            parts = {key: tensor.flatten(0, 1).split(self._part) for key, tensor in observations.items()}
            flat: list[Observation] = [
                dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)
            ]
            shape = next(iter(observations.values())).shape[:2]
        else:
            flat = list(observations.flatten(0, 1).split(self._part))
            shape = observations.shape[:2]
        return torch.cat([self.policy.value(self._there(copied(part))) for part in flat]).view(shape)

    def there(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the policy's device; from page-locked memory, without waiting for the copy."""
        return tensor.to(self.device, non_blocking=True)

    def _there(self, observation: Observation) -> Observation:
        if isinstance(observation, dict):
            return {key: self.there(tensor) for key, tensor in observation.items()}
        return self.there(observation)


def check_defined(
    distribution: ActionDistribution,
    parameters: Tensor,
    acted: Tensor,
    environment: VectorEnvironment,
    first_step: int = 0,
    first_row: int = 0,
) -> None:
    """Raise PolicyFailed where parameters `[steps, count, P]`, of steps and rows from the first ones on, make no
    distribution.

    `acted` `[steps, count]` is False where the environment does not look at the action.
    """
    parameters = parameters.cpu()
    undefined = distribution.defined(parameters).logical_not_().logical_and_(acted)
    if not bool(undefined.any()):
        return
    step, row = undefined.nonzero()[0].tolist()
    where = (
        f" for {environment.row_name(first_row + row)} of environment {environment.name!r}, step {first_step + step}"
    )
    raise PolicyFailed(f"the policy gave {undefined_text(distribution, parameters[step, row], where)}", step)


def undefined_text(distribution: ActionDistribution, row: Tensor, where: str = "") -> str:
    """What is said of parameters `[P]` that make no distribution: the numbers, and what was expected."""
    numbers = ", ".join(f"{number:.4g}" for number in row[:_SHOWN].tolist()) + (", ..." if len(row) > _SHOWN else "")
    if isinstance(distribution, DiagonalGaussian):
        expected = "finite means and log standard deviations"
    elif isinstance(distribution, Bernoulli):
        expected = "finite logits"
    else:
        expected = "logits, of which -inf forbids a choice, but not every one; look at the mask, and for NaN before it"
    return f"[{numbers}]{where}: no action can be drawn from that; expected {expected}"


def on_host(tensor: Tensor) -> Array:
    """The same numbers in the host's memory, once they are there."""
    return tensor.cpu().numpy()


def as_tensors(observation: ObservationArrays) -> Observation:
    """The arrays as tensors over the same memory."""
    if isinstance(observation, dict):
        return {key: torch.from_numpy(array) for key, array in observation.items()}
    return torch.from_numpy(observation)
