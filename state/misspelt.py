"""Finds mistakes in a user's class that would do nothing in silence, or fail only when it is called."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CUTOFF = 0.8


def misspelt(thing: object, base: type, names: Iterable[str]) -> Iterator[str]:
    """What is to be said of each public attribute, of `thing` or of its classes below `base`, that is probably one of
    `names` misspelt. Callbacks (`on_...`) are left out.

    Not so of other words that are alike: plurals and other endings, methods where the name is that of a value and the
    other way round, lists and the like, and names beside the one that they are near to.
    """
    own: dict[str, Any] = {}
    for kind in reversed(type(thing).__mro__):
        if kind is not base and issubclass(kind, base):
            own |= vars(kind)
    own |= getattr(thing, "__dict__", {})
    known = {name for name in names if not name.startswith(("_", "on_"))}
    for name, value in own.items():
        if name in known or name.startswith(("_", "on_")) or hasattr(base, name):
            continue
        near = difflib.get_close_matches(name, known - own.keys(), n=1, cutoff=_CUTOFF)
        if near and _is_meant(name, value, near[0], base):
            yield f"there is no {name!r}; did you mean {near[0]!r}? (an attribute of your own needs another name)"


def wrong_parameters(method: Any, *given: str) -> str | None:
    """What is wrong with a bound method that is to be called with so many arguments, called as `given`."""
    try:
        inspect.signature(method).bind(*given)
    except TypeError as error:
        parameters = ", ".join(("self", *given))
        return f"is called with {' and '.join(given)}, but {error}; write it with the parameters ({parameters})"
    except ValueError:
        return None  # what is written in C may not tell
    return None


def _is_meant(name: str, value: Any, known: str, base: type) -> bool:
    if name.startswith(known) or name[:-1] == known[:-1] or isinstance(value, (list, dict, set)):
        return False
    return callable(value) == callable(getattr(base, known, None))
