"""Finds mistakes in a user's class that would do nothing in silence, or fail only when it is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any


def misspelt(thing: object, base: type, names: Iterable[str]) -> Iterator[str]:
    """What is to be said of each public attribute, of `thing` or of its classes below `base`, that is probably one of
    `names` misspelt. Callbacks (`on_...`) are left out.

    Only of slips within a word: what makes another word, such as another or no first letter, may well be meant. Nor of
    endings, methods where the name is that of a value and the other way round, containers, and names beside the one
    that they are near to.
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
        near = next((one for one in sorted(known - own.keys()) if is_slip(name, one)), None)
        if near is not None and _is_meant(name, value, near, base):
            yield f"there is no {name!r}; did you mean {near!r}? (an attribute of your own needs another name)"


def wrong_parameters(method: Any, *given: str) -> str | None:
    """What is wrong with a bound method that is to be called with so many arguments, called as `given`."""
    try:
        signature = inspect.signature(method)
    except ValueError:  # of a method without `self`; what is written in C may not tell either
        return f"has no parameters: write it as ({', '.join(('self', *given))})" if inspect.ismethod(method) else None
    try:
        signature.bind(*given)
    except TypeError:
        has, needs = ", ".join(("self", *signature.parameters)), ", ".join(("self", *given))
        return f"has the parameters ({has}), but is called with {' and '.join(given)}: write it as ({needs})"
    return None


def is_slip(word: str, known: str) -> bool:
    """Whether a letter after the first is missing, one within the word is too many, two are swapped, or the underscores
    are others."""
    if word.replace("_", "") == known.replace("_", ""):
        return True
    missing = any(known[:at] + known[at + 1 :] == word for at in range(1, len(known)))
    added = any(word[:at] + word[at + 1 :] == known for at in range(1, len(word) - 1))
    swapped = any(word[:at] + word[at : at + 2][::-1] + word[at + 2 :] == known for at in range(len(word) - 1))
    return missing or added or swapped


def _is_meant(name: str, value: Any, known: str, base: type) -> bool:
    kind = getattr(base, known, None)
    singular = f"{name}s" == known and not callable(value)
    container = isinstance(value, Iterable) and not isinstance(value, str)
    if singular or container or isinstance(kind, property):
        return False
    return callable(value) == callable(kind)
