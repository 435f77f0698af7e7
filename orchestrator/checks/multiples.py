"""Numbers that go into each other, for what is said of those that do not."""

from __future__ import annotations


def multiples(value: int, divisor: int) -> str:
    """The multiples of a divisor next to `value`, below and above."""
    below = value // divisor * divisor
    return " or ".join(str(multiple) for multiple in (below, below + divisor) if multiple)


def divisors(value: int, wanted: int) -> str:
    """The divisors of `value` next to a wanted one, below and above."""
    below = max(divisor for divisor in range(1, min(wanted, value) + 1) if value % divisor == 0)
    above = next((divisor for divisor in range(wanted + 1, value + 1) if value % divisor == 0), None)
    return str(below) if above is None else f"{below} or {above}"
