"""The recurrent network: an encoder of observations, an LSTM over time, and linear outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from orchestrator.policies.cnn import ImageEncoder, has_images
from orchestrator.policies.flatten import FlatObservation
from orchestrator.policies.heads import ActionHead
from orchestrator.policies.initialization import ACTOR_GAIN, CRITIC_GAIN, orthogonal
from orchestrator.policies.lstm_scan import lstm_scan
from orchestrator.policies.mlp import Dense
from orchestrator.policies.network import Observation, Spaces
from orchestrator.policies.tokens import TokenEncoder


class VectorEncoder(nn.Module):
    """Fully connected layers over the flattened observation: `[n, ...]` to `[n, size]`."""

    def __init__(self, spaces: Spaces, hidden_sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        self._flatten = FlatObservation(spaces.observation)
        self.layers = Dense((self._flatten.size, *hidden_sizes), activation)
        self.size = hidden_sizes[-1] if hidden_sizes else self._flatten.size

    def forward(self, observation: Observation) -> Tensor:
        return self.layers(self._flatten(observation))


class LSTM(nn.Module):
    """Observations are encoded by the `encoder`; without one, by convolutions where there are images, else by layers of
    the widths `hidden_sizes`.

    The state is the LSTM's hidden state followed by its cell state.
    """

    capturable = True

    def __init__(
        self,
        spaces: Spaces,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        lstm_size: int = 64,
        encoder: TokenEncoder | None = None,
    ) -> None:
        super().__init__()
        self.state_size = 2 * lstm_size
        self.encoder: ImageEncoder | VectorEncoder | TokenEncoder
        if encoder is not None:
            self.encoder = encoder
        elif has_images(spaces.observation):
            self.encoder = ImageEncoder(spaces)
        else:
            self.encoder = VectorEncoder(spaces, hidden_sizes, activation)
        self.lstm = nn.LSTM(self.encoder.size, lstm_size, batch_first=True)
        self.head = ActionHead(spaces)
        self.actor = Dense((lstm_size, self.head.outputs), activation, ACTOR_GAIN)
        self.critic = Dense((lstm_size, 1), activation, CRITIC_GAIN)
        self._initialize()

    def forward(self, observation: Observation, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, time = episode_start.shape
        if isinstance(observation, Tensor):
            observation = observation.flatten(0, 1)
        else:
            observation = {key: part.flatten(0, 1) for key, part in observation.items()}
        encoded = self.encoder(observation).view(batch, time, -1)
        if torch.is_autocast_enabled(encoded.device.type):  # errors of a lower precision would add up in the state
            with torch.autocast(encoded.device.type, enabled=False):
                outputs, hidden, cell = self._recur(encoded.float(), state, episode_start)
        else:
            outputs, hidden, cell = self._recur(encoded, state, episode_start)
        outputs = outputs.reshape(batch * time, -1)
        parameters = self.head(self.actor(outputs))
        value = self.critic(outputs)
        return parameters.view(batch, time, -1), value.view(batch, time), torch.cat((hidden, cell), -1)

    def leave_uncompiled(self) -> None:
        """Have torch.compile pass over the recurrence: a graph of it would have thousands of operations. Its results
        are always of the same layout, so that what follows need be compiled only once."""
        recur = self._recur

        def uncompiled(encoded: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, ...]:
            results = recur(encoded, state, episode_start)
            return tuple(part.clone(memory_format=torch.contiguous_format) for part in results)

        self._recur = cast("Any", torch.compiler.disable(uncompiled))

    def _recur(self, encoded: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[batch, time, inputs]` to `[batch, time, lstm_size]`, and the last hidden and cell state."""
        input_weight, weight, input_bias, bias = cast("list[Tensor]", list(self.lstm.parameters()))
        if episode_start.shape[1] == 1:
            hidden, cell = state.masked_fill(episode_start, 0.0).chunk(2, -1)
            hidden, cell = torch.lstm_cell(encoded[:, 0], (hidden, cell), input_weight, weight, input_bias, bias)
            return hidden.unsqueeze(1), hidden, cell
        # Torch's own is two to four times faster, but knows no resets. To look for one is free only where it waits
        # for no device.
        if encoded.device.type == "cpu" and not bool(episode_start[:, 1:].any()):
            state = state.masked_fill(episode_start[:, :1], 0.0)
            hidden, cell = (part.contiguous() for part in state.unsqueeze(0).chunk(2, -1))
            outputs, (hidden, cell) = self.lstm(encoded, (hidden, cell))
            return outputs, hidden[0], cell[0]
        hidden, cell = state.chunk(2, -1)
        projected = nn.functional.linear(encoded.transpose(0, 1), input_weight, input_bias + bias)
        keep = episode_start.t().logical_not().to(encoded.dtype).unsqueeze(-1)
        outputs, hidden, cell = lstm_scan(projected, hidden, cell, weight, keep)
        return outputs.transpose(0, 1), hidden, cell

    def _initialize(self) -> None:
        input_weight, weight, input_bias, bias = cast("list[Tensor]", list(self.lstm.parameters()))
        with torch.no_grad():
            for gate in (*input_weight.chunk(4), *weight.chunk(4)):
                gate.copy_(orthogonal(*gate.shape, gain=1.0))
            input_bias.zero_()
            bias.zero_()
            # To remember is the better start than to forget (Jozefowicz et al. 2015).
            input_bias.chunk(4)[1].fill_(1.0)
