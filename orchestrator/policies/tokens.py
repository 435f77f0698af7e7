"""The network for observations that are tokens, as MettaGrid's: what is where, instead of an image of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces as gymnasium_spaces
from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn import functional as F

from orchestrator.policies.heads import ActionHead
from orchestrator.policies.initialization import ACTOR_GAIN, CRITIC_GAIN, HIDDEN_GAIN, orthogonal
from orchestrator.policies.mlp import Dense
from orchestrator.policies.network import NetworkError, Observation, Spaces

_BYTES = 256
_GLOBAL, _NONE = 254, 255
"""Coordinates of tokens that are nowhere in particular, and of those that are missing."""
_WIDTH = 32
_LATENTS = 8
_SMALL, _BUCKETS = 8, 13
"""Values below 8 may be names of things, and have an embedding each; greater ones share one per power of 2."""
_FREQUENCIES = (1, 2, 4)


class TokenEncoder(nn.Module):
    """Observations uint8 `[n, tokens, 3]` (a packed coordinate, row and column in four bits each; a feature; its value)
    to `[n, size]`.

    A token is the sum of embeddings: of its feature with its value, of its feature times its value, and a linear map of
    Fourier features of its coordinate. Learned latents attend to the tokens (Jaegle et al. 2021, "Perceiver"), and what
    each of them found is joined. Raises NetworkError for other observations.
    """

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        space = spaces.observation
        shape = space.shape if isinstance(space, gymnasium_spaces.Box) and space.dtype == np.uint8 else ()
        if len(shape) != 2 or shape[1] != 3:
            raise NetworkError(
                "the networks 'tokens' and 'tokens_lstm' need tokens to look at: a Box of uint8 [tokens, 3], as"
                f" MettaGrid has; the observation space is {space}: use another network for it"
            )
        self.size = _LATENTS * _WIDTH
        self.kinds = nn.Embedding(_BYTES * _BUCKETS, _WIDTH)
        self.amounts = nn.Embedding(_BYTES, _WIDTH)
        nn.init.zeros_(self.amounts.weight)
        self.place = nn.Linear(_places().shape[1], _WIDTH)
        self.place.weight = nn.Parameter(orthogonal(*self.place.weight.shape, gain=HIDDEN_GAIN))
        nn.init.zeros_(self.place.bias)
        self.latents = nn.Parameter(orthogonal(_LATENTS, _WIDTH, gain=1.0))
        self.register_buffer("places", _places(), persistent=False)
        self.register_buffer("buckets", _buckets(), persistent=False)

    def forward(self, observation: Observation) -> Tensor:
        assert isinstance(observation, Tensor)
        coordinate, feature, value = self._present(observation).int().unbind(-1)
        amount = torch.log2(value + 1.0).unsqueeze(-1) / 8.0
        places = self.place(self.get_buffer("places"))
        tokens = self.kinds(feature * _BUCKETS + self.get_buffer("buckets")[value])
        tokens = tokens + self.amounts(feature) * amount + F.embedding(coordinate, places)
        scores = tokens @ self.latents.t() / math.sqrt(_WIDTH)
        # Not -inf, which would leave NaN where there is no token at all.
        scores = scores.masked_fill((coordinate == _NONE).unsqueeze(-1), torch.finfo(scores.dtype).min)
        return (scores.softmax(1).transpose(1, 2) @ tokens).flatten(1)

    def _present(self, observation: Tensor) -> Tensor:
        """The first tokens, as many as any row has: most are missing, and all those are behind the others. To look for
        them is free only where it waits for no device."""
        if observation.device.type != "cpu" or is_exporting():
            return observation
        present = (observation[..., 0] != _NONE).any(0).nonzero()
        return observation[:, : int(present[-1]) + 1 if len(present) else 1]


class Tokens(nn.Module):
    """An actor and a critic that share the encoder of tokens and layers of the widths `hidden_sizes`."""

    def __init__(self, spaces: Spaces, hidden_sizes: Sequence[int] = (64, 64), activation: str = "tanh") -> None:
        super().__init__()
        self.encoder = TokenEncoder(spaces)
        self.layers = Dense((self.encoder.size, *hidden_sizes), activation)
        width = hidden_sizes[-1] if hidden_sizes else self.encoder.size
        self.head = ActionHead(spaces)
        self.actor = Dense((width, self.head.outputs), activation, ACTOR_GAIN)
        self.critic = Dense((width, 1), activation, CRITIC_GAIN)

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        features = self.layers(self.encoder(observation))
        return self.head(self.actor(features)), self.critic(features).squeeze(-1)


def _places() -> Tensor:
    """Fourier features of all coordinates, `[256, features]`; the last says that a token is nowhere in particular."""
    coordinates = torch.arange(_BYTES)
    sides = torch.stack((coordinates >> 4, coordinates & 15), 1) / 16.0
    angles = [math.pi * frequency * sides for frequency in _FREQUENCIES]
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    places = torch.cat((sides, *waves, torch.zeros(_BYTES, 1)), 1)
    places[_GLOBAL] = F.one_hot(torch.tensor(places.shape[1] - 1), places.shape[1]).float()
    return places


def _buckets() -> Tensor:
    values = torch.arange(_BYTES)
    powers = torch.floor(torch.log2(torch.clamp(values, min=_SMALL) / _SMALL)).int()
    return torch.where(values < _SMALL, values.int(), _SMALL + powers)
