"""Fully connected networks: the policy for vectors, with an actor and a critic that share nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from orchestrator.policies.activations import ACTIVATIONS
from orchestrator.policies.dense_layers import dense_layers, fits
from orchestrator.policies.flatten import FlatObservation
from orchestrator.policies.heads import ActionHead
from orchestrator.policies.initialization import ACTOR_GAIN, CRITIC_GAIN, HIDDEN_GAIN, orthogonal
from orchestrator.policies.network import NetworkError, Observation, Spaces

# Where a CPU multiplies several times faster with weights that are stored `[outputs, inputs]`.
_FEW_OUTPUTS = range(2, 16)
_MANY_ROWS = 64


class Dense(nn.Module):
    """Fully connected layers of the widths `sizes`, of which the first is the input's; `[n, inputs]` to `[n, outputs]`.

    The initial weights are orthogonal. `output_gain` is their scale in the last layer, which has no nonlinearity;
    None makes the last layer one like the others. Weights are stored `[inputs, outputs]`, the transpose of
    `nn.Linear`'s, so that a layer is one operation: at 8 rows that is a quarter of the time.
    """

    def __init__(self, sizes: Sequence[int], activation: str, output_gain: float | None = None) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise NetworkError(f"the activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        self.activation, self._activation = activation, ACTIVATIONS[activation]
        self._linear_output = output_gain is not None
        layers = len(sizes) - 1
        for index, (inputs, outputs) in enumerate(pairwise(sizes)):
            gain = HIDDEN_GAIN if output_gain is None or index < layers - 1 else output_gain
            self.register_parameter(f"weight_{index}", nn.Parameter(orthogonal(inputs, outputs, gain=gain)))
            self.register_parameter(f"bias_{index}", nn.Parameter(torch.zeros(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        activation = self._activation
        # All parameters at once: looking one up by its name costs a tenth of a small layer.
        parameters = cast("list[Tensor]", list(self._parameters.values()))
        if fits(x, self.activation, parameters):
            return dense_layers(x, self.activation, self._linear_output, parameters)
        hidden = len(parameters) - 2 if self._linear_output else len(parameters)
        for index in range(0, hidden, 2):
            x = activation(torch.addmm(parameters[index + 1], x, parameters[index]))
        return _linear(x, *parameters[-2:]) if self._linear_output else x


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x @ weight + bias`."""
    # An exported graph is for any number of rows.
    if is_compiling() or len(x) < _MANY_ROWS or len(bias) not in _FEW_OUTPUTS or not x.is_cpu:
        return torch.addmm(bias, x, weight)
    return F.linear(x, weight.t().contiguous(), bias)


class MLP(nn.Module):
    """An actor and a critic of fully connected layers, each with its own layers, over the flattened observation."""

    capturable = True

    def __init__(self, spaces: Spaces, hidden_sizes: Sequence[int] = (64, 64), activation: str = "tanh") -> None:
        super().__init__()
        flatten = FlatObservation(spaces.observation)
        self._flatten = None if flatten.identity else flatten
        self.takes_vectors = flatten.identity
        """Whether observations are what the layers take."""
        self.head = ActionHead(spaces)
        self._completes = self.head.completes
        self.actor = Dense((flatten.size, *hidden_sizes, self.head.outputs), activation, ACTOR_GAIN)
        self.critic = Dense((flatten.size, *hidden_sizes, 1), activation, CRITIC_GAIN)

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        x = self._flat(observation)
        return self._act(x), self.critic.forward(x).squeeze(-1)

    def action_parameters(self, observation: Observation) -> Tensor:
        return self._act(self._flat(observation))

    def value(self, observation: Observation) -> Tensor:
        return self.critic.forward(self._flat(observation)).squeeze(-1)

    def _flat(self, observation: Observation) -> Tensor:
        return cast("Tensor", observation) if self._flatten is None else self._flatten(observation)

    def _act(self, x: Tensor) -> Tensor:
        # Neither through nn.Module.__call__ nor as an attribute, which both take as long as a small operation.
        outputs = cast("Dense", self._modules["actor"]).forward(x)
        return self.head.forward(outputs) if self._completes else outputs
