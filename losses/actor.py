"""The base of losses that have the policy explore by a bonus for its entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from losses.loss import Loss

if TYPE_CHECKING:
    from losses.schedule import Schedule

_OF_CHOICES = 0.01
_OF_NUMBERS = 0.002
"""Less, because the entropy of a normal distribution has no greatest value: the bonus goes on widening it, in each of
its dimensions, long after the rewards ask for precision."""


def default_entropy_coefficient(*, continuous: bool) -> float:
    """What suits actions that are numbers (`continuous`), or choices."""
    return _OF_NUMBERS if continuous else _OF_CHOICES


class Actor(Loss):
    """Subclasses subtract `entropy_coefficient` times the mean entropy from what they minimize."""

    def __init__(
        self,
        *,
        entropy_coefficient: float | None = None,
        name: str | None = None,
        weight: float = 1.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule)
        self._entropy_coefficient = entropy_coefficient

    @property
    def entropy_coefficient(self) -> float:
        """Where none was given, 0.01, or 0.002 once it is attached to a policy whose actions are numbers."""
        if self._entropy_coefficient is not None:
            return self._entropy_coefficient
        return default_entropy_coefficient(continuous=self._context is not None and self._context.continuous)

    @entropy_coefficient.setter
    def entropy_coefficient(self, coefficient: float | None) -> None:
        self._entropy_coefficient = coefficient
