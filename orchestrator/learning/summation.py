"""Sums that are rounded in the same way wherever their parts are added."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def tree(first: int, count: int, leaf: Callable[[int], _T], add: Callable[[_T, _T], _T]) -> _T:
    """The sum of the leaves `first` to `first + count - 1`, of two halves each. At most log2(count) + 1 of the parts
    exist at once."""
    if count == 1:
        return leaf(first)
    half = count // 2
    left = tree(first, half, leaf, add)
    return add(left, tree(first + half, count - half, leaf, add))
