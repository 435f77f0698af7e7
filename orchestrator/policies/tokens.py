"""The network for observations that are tokens, as MettaGrid's: what is where, instead of an image of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

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
_KINDS = _BYTES * _BUCKETS
_FORBIDDEN = -1e30
_PART = 96
"""Rows that are computed together: what is known of their tokens stays in the processor's cache."""
_FREQUENCIES = (1, 2, 4)


class TokenEncoder(nn.Module):
    """Observations uint8 `[n, tokens, 3]` (a packed coordinate, row and column in four bits each; a feature; its value)
    to `[n, size]`.

    A token is the sum of embeddings: of its feature with its value, of its feature times its value, and a linear map of
    Fourier features of its coordinate. Learned latents attend to the tokens (Jaegle et al. 2021, "Perceiver"), and what
    each of them found is joined. Raises NetworkError for other observations.

    Most tokens are missing, mostly behind the others. On a CPU, rows of about as many tokens are computed together, so
    that few of the missing ones are.
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
        self.kinds = nn.Embedding(_KINDS, _WIDTH)
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
        # The number of tokens is free to look at only where that waits for no device.
        if observation.device.type != "cpu" or is_exporting():
            return self._attend(observation, self._embeddings())
        return self._in_parts(observation)

    def leave_uncompiled(self) -> None:
        """Have torch.compile pass over rows in parts, whose number and sizes depend on the observation."""
        self._in_parts = cast("Any", torch.compiler.disable(self._in_parts))

    def _in_parts(self, observation: Tensor) -> Tensor:
        embeddings = self._embeddings()
        numbers = torch.arange(1, observation.shape[1] + 1, dtype=torch.int16)
        lengths, order = ((observation[..., 0] != _NONE) * numbers).amax(1).sort(descending=True)
        longest = lengths[::_PART].tolist()
        parts = [
            self._attend(observation[rows, : max(1, length)], embeddings)
            for rows, length in zip(order.split(_PART), longest, strict=True)
        ]
        return torch.cat(parts)[order.argsort()]

    def _embeddings(self) -> Tensor:
        """What tokens are sums of: embeddings of kinds, of features and of coordinates, each with its scores for the
        latents, `[kinds + 2 * 256, width + latents]`."""
        places = self.place(self.get_buffer("places"))
        latents = self.latents.t() / math.sqrt(_WIDTH)
        # Of the last coordinate, _NONE. Not -inf, which would leave NaN where there is no token at all.
        scores = torch.cat(((places @ latents)[:_NONE], latents.new_full((1, _LATENTS), _FORBIDDEN)))
        others = torch.cat((self.kinds.weight, self.amounts.weight))
        return torch.cat((torch.cat((others, others @ latents), 1), torch.cat((places, scores), 1)))

    def _attend(self, observation: Tensor, embeddings: Tensor) -> Tensor:
        coordinate, feature, value = observation.flatten(0, 1).int().unbind(1)
        kind = feature * _BUCKETS + self.get_buffer("buckets").index_select(0, value)
        parts = torch.stack((kind, feature + _KINDS, coordinate + (_KINDS + _BYTES)), 1)
        amount = torch.log2(value + 1.0) / 8.0
        weights = torch.stack((torch.ones_like(amount), amount, torch.ones_like(amount)), 1)
        if is_exporting():  # to formats that lack the operation
            sums = (F.embedding(parts, embeddings) * weights.unsqueeze(-1)).sum(1)
        else:
            sums = F.embedding_bag(parts, embeddings, mode="sum", per_sample_weights=weights)
        tokens, scores = sums.view(*observation.shape[:2], -1).split((_WIDTH, _LATENTS), -1)
        # Contiguous, since softmax is slow along other axes than the last.
        return (scores.transpose(1, 2).contiguous().softmax(-1) @ tokens).flatten(1)


class Tokens(nn.Module):
    """An actor and a critic that share the encoder of tokens and layers of the widths `hidden_sizes`."""

    capturable = True

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
