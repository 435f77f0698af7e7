"""The network for observations that are tokens, as MettaGrid's: what is where, instead of an image of it."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces as gymnasium_spaces
from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn import functional as F

from orchestrator.environments.spaces import Array
from orchestrator.policies.heads import ActionHead
from orchestrator.policies.initialization import ACTOR_GAIN, CRITIC_GAIN, HIDDEN_GAIN, orthogonal
from orchestrator.policies.mlp import Dense
from orchestrator.policies.network import NetworkError, Observation, Spaces
from orchestrator.policies.token_sums import (
    MISSING,
    TokenSets,
    TokenTable,
    different,
    sums_of_rows,
    tokens_of,
)

_BYTES = 256
_GLOBAL = 254
"""The coordinate of tokens that are nowhere in particular."""
_WIDTH = 32
_SMALL, _BUCKETS = 8, 13
"""Values below 8 may be names of things, and have an embedding each; greater ones share one per power of 2."""
_KINDS = _BYTES * _BUCKETS
_FORBIDDEN = -1e30
_PART = 96
"""Rows that are computed together: what is known of their tokens stays in the processor's cache."""
_SHARED = 4
"""Tokens for each different one from which it is faster to compute different ones once."""
_STEEPEST = 60.0
"""Scores are clamped to this for their exponentials, which would overflow."""
_LEAST, _GREATEST = 1e-17, 1e25
"""What sums of weights are between that show nothing of that; others' rows are computed by softmax."""
_FREQUENCIES = (1, 2, 4)


class TokenEncoder(nn.Module):
    """Observations uint8 `[n, tokens, 3]` (a packed coordinate, row and column in four bits each; a feature; its value)
    to `[n, size]`.

    A token is the sum of embeddings: of its feature with its value, of its feature times its value, and a linear map of
    Fourier features of its coordinate. `latents` learned vectors attend to the tokens (Jaegle et al. 2021,
    "Perceiver"), and what each of them found is joined. Raises NetworkError for other observations.

    The latents ask every row the same. So a token has the same weight in each, the exponential of its score, and a
    row's result is a quotient of sums over its tokens: of their vectors times their weights, and of their weights. On a
    CPU, these are computed once for each different token of many rows, or while weights are `fixed`, of all of them.
    """

    def __init__(self, spaces: Spaces, latents: int = 8) -> None:
        super().__init__()
        space = spaces.observation
        shape = space.shape if isinstance(space, gymnasium_spaces.Box) and space.dtype == np.uint8 else ()
        if len(shape) != 2 or shape[1] != 3:
            raise NetworkError(
                "the networks 'tokens' and 'tokens_lstm' need tokens to look at: a Box of uint8 [tokens, 3], as"
                f" MettaGrid has; the observation space is {space}: use another network for it"
            )
        self.size = latents * _WIDTH
        self._fixed: Tensor | None = None
        """The embeddings while weights stay the same."""
        self._place_of_fixed = _Place()
        self._table: TokenTable | None = None
        self.kinds = nn.Embedding(_KINDS, _WIDTH)
        self.amounts = nn.Embedding(_BYTES, _WIDTH)
        nn.init.zeros_(self.amounts.weight)
        self.place = nn.Linear(_places().shape[1], _WIDTH)
        self.place.weight = nn.Parameter(orthogonal(*self.place.weight.shape, gain=HIDDEN_GAIN))
        nn.init.zeros_(self.place.bias)
        self.latents = nn.Parameter(orthogonal(latents, _WIDTH, gain=1.0))
        self.register_buffer("places", _places(), persistent=False)
        self.register_buffer("buckets", _buckets(), persistent=False)

    def forward(self, observation: Observation) -> Tensor:
        assert isinstance(observation, Tensor)
        embeddings = self._embeddings() if self._fixed is None else self._fixed
        # The tokens are free to look at only where that waits for no device.
        if observation.device.type != "cpu" or is_exporting():
            return self._attend(observation, embeddings)
        return self._on_cpu(observation, embeddings)

    @contextmanager
    def fixed(self) -> Generator[None]:
        """Meanwhile, the weights stay the same, and nothing has gradients."""
        with torch.no_grad():
            embeddings = self._place_of_fixed.put(self._embeddings())
            if embeddings.is_cpu:
                self._table = self._table or TokenTable(self.size + len(self.latents))
                self._table.begin(partial(_write_rows, embeddings.numpy()))
            self._fixed = embeddings
            try:
                yield
            finally:
                self._fixed = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy finds out by itself which tokens there are.
        return self.__dict__ | {"_fixed": None, "_place_of_fixed": _Place(), "_table": None}

    def leave_uncompiled(self) -> None:
        """Have torch.compile pass over what is done on a CPU, where sizes depend on the observation."""
        self._on_cpu = cast("Any", torch.compiler.disable(self._on_cpu))

    def _on_cpu(self, observation: Tensor, embeddings: Tensor) -> Tensor:
        table = None if self._fixed is None else self._table
        sets = TokenSets.of(observation.numpy(), 0 if table is None else table.longest)
        places = None if table is None else table.places(sets)
        if table is None or places is None:
            found = different(sets.codes, _SHARED)
            if found is None:
                return self._in_parts(observation, embeddings)
            codes, places = found
            rows = self._rows(codes, embeddings)
        else:
            rows = table.rows
        sums = sums_of_rows(rows, places, sets.ends)
        weights = sums.detach()[:, self.size :]
        least, greatest = weights.aminmax()
        if float(least) > _LEAST and float(greatest) < _GREATEST:
            return _quotients(sums)
        precise = ((weights > _LEAST) & (weights < _GREATEST)).all(1)
        found = sums.new_empty(len(sums), self.size)
        found[precise] = _quotients(sums[precise])
        found[~precise] = self._in_parts(observation[~precise], embeddings).to(found.dtype)
        return found

    def _in_parts(self, observation: Tensor, embeddings: Tensor) -> Tensor:
        """Rows of about as many tokens together, so that few of the missing ones are computed."""
        numbers = torch.arange(1, observation.shape[1] + 1, dtype=torch.int16)
        lengths, order = ((observation[..., 0] != MISSING) * numbers).amax(1).sort(descending=True)
        longest = lengths[::_PART].tolist()
        parts = [
            self._attend(observation[rows, : max(1, length)], embeddings)
            for rows, length in zip(order.split(_PART), longest, strict=True)
        ]
        return torch.cat(parts)[order.argsort()]

    def _rows(self, codes: Array, embeddings: Tensor) -> Tensor:
        """The vectors of tokens times their weights, and the weights, `[k, latents * width + latents]`."""
        vectors, scores = self._parts(tokens_of(codes), embeddings)
        weights = scores.clamp(-_STEEPEST, _STEEPEST).exp()
        return torch.cat(((weights.unsqueeze(2) * vectors.unsqueeze(1)).flatten(1), weights), 1)

    def _embeddings(self) -> Tensor:
        """What tokens are sums of: embeddings of kinds, of features and of coordinates, each with its scores for the
        latents, `[kinds + 2 * 256, width + latents]`."""
        places = self.place(self.get_buffer("places"))
        latents = self.latents.t() / math.sqrt(_WIDTH)
        # Of the last coordinate, MISSING. Not -inf, which would leave NaN where there is no token at all.
        scores = torch.cat(((places @ latents)[:MISSING], latents.new_full((1, len(self.latents)), _FORBIDDEN)))
        others = torch.cat((self.kinds.weight, self.amounts.weight))
        return torch.cat((torch.cat((others, others @ latents), 1), torch.cat((places, scores), 1)))

    def _attend(self, observation: Tensor, embeddings: Tensor) -> Tensor:
        tokens, scores = self._parts(observation.flatten(0, 1), embeddings)
        tokens, scores = (part.view(*observation.shape[:2], -1) for part in (tokens, scores))
        # Contiguous, since softmax is slow along other axes than the last.
        return (scores.transpose(1, 2).contiguous().softmax(-1) @ tokens).flatten(1)

    def _parts(self, tokens: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors `[k, width]` and scores for the latents `[k, latents]` of tokens `[k, 3]`."""
        coordinate, feature, value = tokens.int().unbind(1)
        kind = feature * _BUCKETS + self.get_buffer("buckets").index_select(0, value)
        parts = torch.stack((kind, feature + _KINDS, coordinate + (_KINDS + _BYTES)), 1)
        amount = torch.log2(value + 1.0) / 8.0
        weights = torch.stack((torch.ones_like(amount), amount, torch.ones_like(amount)), 1)
        if is_exporting():  # to formats that lack the operation
            sums = (F.embedding(parts, embeddings) * weights.unsqueeze(-1)).sum(1)
        else:
            sums = F.embedding_bag(parts, embeddings, mode="sum", per_sample_weights=weights)
        vectors, scores = sums.split((_WIDTH, len(self.latents)), 1)
        return vectors, scores


class _Place:
    """Where a tensor is each time, so that recordings of what is done with it find it."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def put(self, tensor: Tensor) -> Tensor:
        own = self._memory
        if own is None or _kind(own) != _kind(tensor):
            self._memory = tensor
            return tensor
        return own.copy_(tensor)


class Tokens(nn.Module):
    """An actor and a critic that share the encoder of tokens and layers of the widths `hidden_sizes`."""

    capturable = True

    def __init__(
        self, spaces: Spaces, hidden_sizes: Sequence[int] = (64, 64), activation: str = "tanh", latents: int = 8
    ) -> None:
        super().__init__()
        self.encoder = TokenEncoder(spaces, latents)
        self.layers = Dense((self.encoder.size, *hidden_sizes), activation)
        width = hidden_sizes[-1] if hidden_sizes else self.encoder.size
        self.head = ActionHead(spaces)
        self.actor = Dense((width, self.head.outputs), activation, ACTOR_GAIN)
        self.critic = Dense((width, 1), activation, CRITIC_GAIN)

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        features = self.layers(self.encoder(observation))
        return self.head(self.actor(features)), self.critic(features).squeeze(-1)


def _write_rows(embeddings: Array, codes: Array, out: Array) -> None:
    """As `_rows`, without gradients. By numpy, which takes a third of the time for the few tokens that are new in a
    step, and gives a number the same bits whatever is beside it, so that it doesn't matter what was known."""
    coordinate, feature, value = codes & 255, codes >> 8 & 255, codes >> 16
    with np.errstate(all="ignore"):  # as torch does
        parts = embeddings[_KINDS + feature]
        parts *= _AMOUNT_OF[value, None]
        parts += embeddings[feature * _BUCKETS + _BUCKET_OF[value]]
        parts += embeddings[_KINDS + _BYTES + coordinate]
        weights = np.exp(parts[:, _WIDTH:].clip(-_STEEPEST, _STEEPEST))
        latents = weights.shape[1]
        products = out[:, :-latents].reshape(-1, latents, _WIDTH)
        np.multiply(weights[:, :, None], parts[:, None, :_WIDTH], out=products)
    out[:, -latents:] = weights


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.is_inference()


def _quotients(sums: Tensor) -> Tensor:
    latents = sums.shape[1] // (_WIDTH + 1)
    vectors, weights = sums.split((latents * _WIDTH, latents), 1)
    return (vectors.unflatten(1, (latents, _WIDTH)) / weights.unsqueeze(-1)).flatten(1)


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


_BUCKET_OF = _buckets().numpy().astype(np.uint32)
_AMOUNT_OF = np.log2(np.arange(1, 1 + _BYTES), dtype=np.float32) / np.float32(8)
