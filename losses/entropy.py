"""How much the entropy bonus weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from losses.minibatch import Minibatch

_OF_CHOICES = 0.01
_OF_NUMBERS = 0.002
"""Less, because the entropy of a normal distribution has no greatest value: the bonus goes on widening it, in each of
its dimensions, long after the rewards ask for precision."""


def default_entropy_coefficient(*, continuous: bool) -> float:
    """What suits actions that are numbers (`continuous`), or choices."""
    return _OF_NUMBERS if continuous else _OF_CHOICES


def entropy_weight(coefficient: float | None, minibatch: Minibatch) -> float:
    """The coefficient; where it is None, the default one for the minibatch's actions."""
    if coefficient is not None:
        return coefficient
    return default_entropy_coefficient(continuous=minibatch["action"].is_floating_point())
