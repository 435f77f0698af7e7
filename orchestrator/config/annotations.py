"""What stands at a setting beside its type: what it may be, whether it may change on resume, whether it names code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeAlias

FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""`package.module:function`, the way to name code of one's own."""
Kind: TypeAlias = Literal["environments", "wrappers", "networks", "losses", "hooks", "sinks"]
"""What code that settings name may be."""
_SEED_END = 2**31  # the narrowest of what environments take as a seed


@dataclass(frozen=True, slots=True)
class Admits:
    """What a value of the right type must be, too."""

    expected: str
    holds: Callable[[Any], bool]
    cure: str | None = None
    """None: what the default is."""


@dataclass(frozen=True, slots=True)
class NamesCode:
    """The setting names code: one of the `known` names, one that an installed package gives to code of this `kind`, or
    `package.module:function`."""

    kind: Kind
    known: tuple[str, ...] = ()
    function: str = "a function"
    """What such a function is, to be named where nothing is known."""
    arguments: int = 0
    """How many it is called with."""


@dataclass(frozen=True, slots=True)
class Formerly:
    """What the setting was called in earlier releases, whose files are still read."""

    name: str


@dataclass(frozen=True, slots=True)
class CalledElsewhere:
    """What other libraries call the setting: suggested where such a name is met."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


class Note(Enum):
    """What else can be said of a setting, or of all settings of a section."""

    MAY_CHANGE = "may change when a run is resumed"
    NAMES_ENVIRONMENT = "names an environment, which is code where it has a colon"
    NO_CODE = "never names code, whatever it looks like"
    LEADS_TO_CODE = "names a place whose code runs here; auto is the user's own"


MAY_CHANGE, NAMES_ENVIRONMENT, NO_CODE, LEADS_TO_CODE = Note


def _positive(value: float) -> bool:
    return 0 < value < math.inf


_WRITABLE = Admits("a number below 2**63, as files can hold it", lambda value: value < 2**63)
Count = Annotated[int, Admits("at least 1", lambda value: value >= 1), _WRITABLE]
Period = Annotated[int, Admits("at least 0", lambda value: value >= 0), _WRITABLE]
Seed = Annotated[int, Admits(f"a whole number from 0 to {_SEED_END - 1}", lambda value: 0 <= value < _SEED_END)]
Positive = Annotated[float, Admits("a finite number above 0", _positive)]
PositiveOrInfinite = Annotated[float, Admits("a number above 0", lambda value: value > 0)]
NotNegative = Annotated[float, Admits("a finite number, 0 or above", lambda value: 0 <= value < math.inf)]
PowerOfTwo = Annotated[
    int,
    Admits(
        "a power of two: 1, 2, 4, ...",
        lambda value: value > 0 and value & (value - 1) == 0,
        cure="set it to the next lower one, or the next higher where there are cores for it",
    ),
]
Fraction = Annotated[float, Admits("a number between 0 and 1", lambda value: 0 <= value <= 1)]


def named(expected: str) -> Admits:
    """Text that is not blank."""
    return Admits(expected, lambda value: bool(value.strip()))


def each(expected: str, holds: Callable[[Any], bool]) -> Admits:
    """A list of such values."""
    return Admits(expected, lambda values: all(map(holds, values)))


Environment = Annotated[str, named("the name of an environment"), NAMES_ENVIRONMENT]
Device = Annotated[
    str,
    Admits(
        "auto, cpu, cuda, cuda:<index> or mps",
        lambda device: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device) is not None,
        cure="set it to auto, which leaves the choice to the run",
    ),
    NO_CODE,
]
ClusterAddress = Annotated[
    str,
    Admits(
        "auto, or HOST:PORT of a Ray cluster",
        lambda address: address == "auto" or re.fullmatch(r"[^\s:/]+:\d+", address) is not None,
        cure="set it to auto on a machine of the cluster",
    ),
    LEADS_TO_CODE,
]
