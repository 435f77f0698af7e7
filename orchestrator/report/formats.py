"""Numbers and axes as people read them."""

from __future__ import annotations

import math

UNKNOWN = "-"
_PREFIXES = ((1e9, "G", 0.9995e9), (1e6, "M", 0.9995e6), (1e3, "k", 9_999.5))


def number(value: float | None) -> str:
    """Three significant digits, with k from ten thousand on, M and G: `12.3k`, `1234`."""
    if value is None:
        return UNKNOWN
    for scale, prefix, least in _PREFIXES:
        if abs(value) >= least:
            return f"{_three(value / scale)}{prefix}"
    return _three(value)


def _three(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def epochs(count: float | None) -> str:
    return UNKNOWN if count is None else f"{count:.0f} epoch{'' if count == 1 else 's'}"


def share(part: float | None, whole: float | None) -> str:
    """A percentage."""
    return UNKNOWN if part is None or not whole else f"{100 * part / whole:.1f} %"


def duration(seconds: float | None) -> str:
    """`850 µs`, `12.3 ms`, `4.5 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 1e-3:
        return f"{_three(seconds * 1e6)} µs" if seconds else "0 s"
    if seconds < 1:
        return f"{_three(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{_three(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit for an axis that reaches to `seconds`, and how many seconds it has."""
    for name, length in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= 3 * length:
            return name, length
    return "µs", 1e-6


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if raw <= factor * power * 1.0001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [0.0 if index == 0 else index * step for index in range(first, last + 1)]
