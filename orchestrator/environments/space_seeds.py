"""Seeds for the spaces that environments sample from themselves, as gymnasium asks its users to give them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from gymnasium import Space

_ours: weakref.WeakValueDictionary[int, Space[Any]] = weakref.WeakValueDictionary()
"""Spaces that had no seed of their own, by identity: a space of a class outlives a run."""


class SpaceSeeds:
    """The spaces that `environments`, copies of one with their wrappers, have in attributes, and have not seeded
    themselves, and those that their classes have."""

    def __init__(self, environments: Sequence[object]) -> None:
        attributes = [[vars(one) for one in _layers(environment)] for environment in environments]
        classes = [vars(kind) for one in _layers(environments[0]) for kind in type(one).__mro__]
        of_classes = _unseeded(classes)
        self._classes_unseeded = bool(of_classes)
        self._of_classes = of_classes
        self._spaces = [_unseeded(own) for own in attributes]
        for spaces in (of_classes, *self._spaces):
            _ours.update(spaces)

    def seed(self, seeds: Sequence[int], of_classes: int) -> bool:
        """Seed each copy's spaces from its seed, each differently, and those of classes from another one: that of the
        first of all copies, wherever it is. Returns whether spaces of classes had none."""
        first, self._classes_unseeded = self._classes_unseeded, False
        _seed(self._of_classes, of_classes)
        for spaces, seed in zip(self._spaces, seeds, strict=True):
            _seed(spaces, seed, skip=len(self._of_classes) if seed == of_classes else 0)
        return first


def _seed(spaces: Mapping[int, Space[Any]], seed: int, skip: int = 0) -> None:
    """`skip`: so many words of the seed are others'."""
    words = np.random.SeedSequence([seed, _STREAM]).generate_state(skip + len(spaces), np.uint32)[skip:]
    for space, word in zip(spaces.values(), words, strict=True):
        Space.seed(space, int(word))  # of a composite space: its own generator alone


def _layers(environment: object) -> Iterator[object]:
    """An environment and what it wraps."""
    while hasattr(environment, "__dict__"):
        yield environment
        own = vars(environment)
        environment = own.get("env", own.get("aec_env"))  # PettingZoo's conversions have the latter


def _unseeded(values: Sequence[object]) -> dict[int, Space[Any]]:
    """By identity, the spaces without a seed among values, in their containers and in what the spaces are made of."""
    found: dict[int, Space[Any]] = {}
    seen: set[int] = set()
    pending = list(reversed(values))
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Space):
            space = cast("Space[Any]", value)
            if _is_unseeded(space):
                found[id(space)] = space
            value = vars(space)
        items = value.values() if isinstance(value, Mapping) else value
        pending += [item for item in cast("Iterable[object]", items) if isinstance(item, _HOLDING)]
    return found


def _is_unseeded(space: Space[Any]) -> bool:
    return getattr(space, "_np_random", None) is None or _ours.get(id(space)) is space


_HOLDING = (Space, dict, list, tuple)
_STREAM = 0x5BACE
"""Makes these streams others than that of the environment, which has the same seed."""
