"""Sums over sets of tokens, of rows of a table that has one for each different token. Few of the tokens that are
observed are different, so that what depends on a token alone need be computed for few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.environments.spaces import Array

MISSING = 255
"""The coordinate of tokens that are not there."""
_MOST = 1 << 15
"""Different tokens that a table remembers."""
_KEPT = 1 << 13
"""Those of which a table is computed again with other weights; a rollout of MettaGrid's arena has fewer."""
_CODES = 1 << 24
_FEW = 1 << 16
"""Places below are sorted by their digits."""


class TokenSets(NamedTuple):
    """The tokens of rows, without those that are not there."""

    codes: Array
    """`[tokens]`, of all rows one after another, as numbers below 2**24."""
    ends: Array
    """`[rows + 1]`: of each row among them, after a 0."""
    longest: int
    """Tokens of a row up to the last one that is there in any."""

    @classmethod
    def of(cls, observation: Array, likely: int = 0) -> TokenSets:
        """Those of uint8 `[rows, tokens, 3]`, which is fast where `likely` is the longest."""
        observation = np.ascontiguousarray(observation)
        rows, tokens, _ = observation.shape
        longest = likely
        if observation[:, longest:].min(initial=MISSING) < MISSING:
            there = (observation[..., 0] != MISSING).any(0)
            longest = 1 + int(np.flatnonzero(there).max(initial=longest - 1))
        # Each is read with the byte behind it, which the last one of all lacks.
        memory: Any = observation if longest < tokens else np.append(observation, np.uint8(0))
        codes = np.ndarray((rows, longest), "<u4", memory, 0, (3 * tokens, 3))
        there = observation[:, :longest, 0] != MISSING
        return cls(codes[there] & (_CODES - 1), _ends(np.count_nonzero(there, axis=1)), longest)


def tokens_of(codes: Array) -> Tensor:
    """uint8 `[k, 3]` of codes `[k]`."""
    return torch.from_numpy(codes.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3])


def different(codes: Array, shared: int) -> tuple[Array, Array] | None:
    """The different ones of the codes, and of each code its place among them. None where there are fewer than `shared`
    codes for each different one."""
    # By their kinds first, which are few, so that little memory is touched.
    kinds, kind = _numbered(codes >> 8, 1 << 16)
    if shared * len(kinds) > len(codes):
        return None
    found, places = _numbered(kind << 8 | (codes & 255).astype(np.int32), len(kinds) << 8)
    return (
        None if shared * len(found) > len(codes) else ((kinds[found >> 8] << 8 | found & 255).astype(np.uint32), places)
    )


def _numbered(numbers: Array, limit: int) -> tuple[Array, Array]:
    """The different ones of numbers below the limit, sorted, and of each number its place among them."""
    there = np.zeros(limit, np.bool_)
    there[numbers] = True
    found = np.flatnonzero(there)
    places = np.empty(limit, np.int32)
    places[found] = np.arange(len(found))
    return found, places.take(numbers)


class TokenTable:
    """A table for weights that stay the same, which remembers the tokens that it has seen: `begin`, then `places`."""

    def __init__(self, columns: int) -> None:
        with torch.inference_mode(False):
            self.rows = torch.empty(1 + _MOST, columns)
        """`[places, columns]`."""
        self.longest = 0
        self._places = np.zeros(_CODES, np.uint16)
        """Of tokens by their codes; 0 of those that are not known."""
        self._codes = np.empty(1 + _MOST, np.uint32)
        """By their places."""
        self._end = 1
        """Of the places of tokens that are known."""
        self._too_many = False
        """Whether there was no room for a batch's: what follows is likely to be no different."""

    def begin(self, write: Callable[[Array, Array], object]) -> None:
        """From now on, `write` computes the rows of codes `[k]`, into the array `[k, columns]` that it is given."""
        self._write, self.longest, self._too_many = write, 0, False
        if self._end > _KEPT:
            self._forget()
        self._compute(1)

    def places(self, sets: TokenSets) -> Array | None:
        """The rows of the tokens; None where more of them are different than there is room for, and from then on until
        `begin`."""
        self.longest, codes = sets.longest, sets.codes
        if self._too_many:
            return None
        places = self._places.take(codes)
        if not places.all():
            missing = places == 0
            new = np.unique(codes[missing])
            if self._end + len(new) > len(self._codes):
                self._forget()
                new, missing = np.unique(codes), slice(None)
                self._too_many = self._end + len(new) > len(self._codes)
                if self._too_many:
                    return None
            first, self._end = self._end, self._end + len(new)
            self._codes[first : self._end] = new
            self._places[new] = np.arange(first, self._end)
            self._compute(first)
            places[missing] = self._places.take(codes[missing])
        return places.astype(np.int32)

    def _forget(self) -> None:
        self._places[self._codes[1 : self._end]] = 0
        self._end = 1

    def _compute(self, first: int) -> None:
        self._write(self._codes[first : self._end], self.rows.numpy()[first : self._end])


def sums_of_rows(table: Tensor, places: Array, ends: Array) -> Tensor:
    """`[n, columns]`: the sum of each row's places in the `table` `[k, columns]`, where `ends` `[n + 1]` are those of
    the rows among the places, after a 0."""
    if torch.is_grad_enabled() and table.requires_grad:
        return _SumsOfRows.apply(table, places, ends)
    return _sums_of_rows(table, places, ends)


def _sums_of_rows(table: Tensor, places: Array, ends: Array) -> Tensor:
    bags = torch.from_numpy(places), torch.from_numpy(ends)
    return F.embedding_bag(bags[0], table, bags[1], mode="sum", include_last_offset=True)


class _SumsOfRows(torch.autograd.Function):
    """Its gradient is a sum of the same kind, which is several times faster than torch's."""

    @staticmethod
    def forward(table: Tensor, places: Array, ends: Array) -> Tensor:
        return _sums_of_rows(table, places, ends)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Array, Array], output: Tensor) -> None:
        table, ctx.places, ctx.ends = inputs
        ctx.count = len(table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        places, lengths = ctx.places, np.diff(ctx.ends)
        order = np.argsort(places.astype(np.uint16) if ctx.count <= _FEW else places, kind="stable")
        rows = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[order]
        return sums_of_rows(gradients[0], rows, _ends(np.bincount(places, minlength=ctx.count))), None, None


def _ends(lengths: Array) -> Array:
    ends = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=ends[1:])
    return ends
