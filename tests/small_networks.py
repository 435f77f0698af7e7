"""Networks so small that a test can write out what they compute, named "tests.small_networks:<function>"."""

from __future__ import annotations

import gymnasium
import torch
from torch import Tensor, nn

from orchestrator.policies.network import Observation, Spaces

STATE_SIZE = 4


def flat(observation: Observation, leading: int) -> Tensor:
    """The observation's numbers side by side, keys sorted, bytes scaled to 0 to 1."""
    tensors = [observation[key] for key in sorted(observation)] if isinstance(observation, dict) else [observation]
    scaled = [tensor / 255 if tensor.dtype == torch.uint8 else tensor.float() for tensor in tensors]
    return torch.cat([tensor.reshape(*tensor.shape[:leading], -1) for tensor in scaled], dim=-1)


def inputs(space: gymnasium.Space) -> int:
    leaves = space.values() if isinstance(space, gymnasium.spaces.Dict) else [space]
    return sum(int(torch.tensor(leaf.shape).prod()) for leaf in leaves)


class Shared(nn.Module):
    """Action parameters and value in one linear layer."""

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs(spaces.observation), spaces.action_parameters + 1)

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        output = self.layer(flat(observation, 1))
        return output[:, :-1], output[:, -1]


class Reusing(Shared):
    """The same function, but every call writes its results into the same memory."""

    def __init__(self, spaces: Spaces) -> None:
        super().__init__(spaces)
        self.results = torch.zeros(1024, spaces.action_parameters + 1)

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        output = self.layer(flat(observation, 1))
        results = self.results[: len(output)].copy_(output.detach())
        return results[:, :-1], results[:, -1]


class Separate(Shared):
    """The same function by the methods of the fast path."""

    def action_parameters(self, observation: Observation) -> Tensor:
        return self.forward(observation)[0]

    def value(self, observation: Observation) -> Tensor:
        return self.forward(observation)[1]


class Recurrent(nn.Module):
    """An Elman network: state = tanh(linear([observation, state])), outputs linear in the state."""

    state_size = STATE_SIZE

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.cell = nn.Linear(inputs(spaces.observation) + STATE_SIZE, STATE_SIZE)
        self.layer = nn.Linear(STATE_SIZE, spaces.action_parameters + 1)

    def forward(self, observation: Observation, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        features = flat(observation, 2)
        for step in range(features.shape[1]):
            state = state * ~episode_start[:, step, None]
            state = torch.tanh(self.cell(torch.cat([features[:, step], state], dim=-1)))
            outputs.append(self.layer(state))
        output = torch.stack(outputs, dim=1)
        return output[..., :-1], output[..., -1], state


def make_shared(spaces: Spaces) -> Shared:
    return Shared(spaces)


def make_reusing(spaces: Spaces) -> Reusing:
    return Reusing(spaces)


def make_separate(spaces: Spaces) -> Separate:
    return Separate(spaces)


def make_recurrent(spaces: Spaces) -> Recurrent:
    return Recurrent(spaces)
