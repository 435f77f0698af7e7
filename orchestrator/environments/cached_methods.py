"""What methods with `functools.cache` remember of an object: as if it were in attributes of it."""

from __future__ import annotations

import functools
import gc
from typing import Any, cast

CACHED = functools._lru_cache_wrapper  # pyright: ignore[reportPrivateUsage]
_SUFFIX = "()"


def remembered_by(value: object) -> dict[str, dict[Any, Any]]:
    """The results of such methods for an object, by the method's name with "()", and by the arguments: a single text
    or integer as it is, others as a tuple."""
    found: dict[str, dict[Any, Any]] = {}
    for name, cache in _caches(type(value)).items():
        # Copied at once, since other threads may call the method.
        results = {key[1:]: result for key, result in cache.copy().items() if is_of(key, value)}
        if results:
            found[name] = {_argument(key): result for key, result in results.items()}
    return found


def is_remembered(name: str) -> bool:
    """Whether a name is one that `remembered_by` gives."""
    return name.endswith(_SUFFIX)


def remember(value: object, name: str, results: dict[Any, Any]) -> None:
    """Have the method remember these results of the object, and no others."""
    cache = _caches(type(value)).get(name, {})
    for key in [key for key in cache.copy() if is_of(key, value)]:
        del cache[key]
    for arguments, result in results.items():
        cache[(value, *(arguments if isinstance(arguments, tuple) else (arguments,)))] = result


def remembers_only_objects(cached: Any, kind: type) -> bool:
    """Whether a cached function of a class remembers results for objects of it, and nothing else."""
    cache = _unbounded(cached)
    return cache is not None and all(
        isinstance(key, tuple) and bool(key) and isinstance(key[0], kind) for key in cache.copy()
    )


def is_of(key: object, value: object) -> bool:
    """Whether a key is of a call with the object as its first argument."""
    return isinstance(key, tuple) and len(cast("tuple[object, ...]", key)) > 0 and key[0] is value


@functools.lru_cache(4096)
def _caches(kind: type) -> dict[str, dict[Any, Any]]:
    caches: dict[str, dict[Any, Any]] = {}
    for base in reversed(kind.__mro__):
        for name, attribute in vars(base).items():
            cache = _unbounded(attribute)
            if cache is not None:
                caches[f"{name}{_SUFFIX}"] = cache
    return caches


def _unbounded(cached: Any) -> dict[Any, Any] | None:
    """The results of a cached function by its arguments; None for what is none, or forgets some of them."""
    if not isinstance(cached, CACHED) or cast("Any", cached).cache_parameters() != {"maxsize": None, "typed": False}:
        return None
    dicts = [one for one in gc.get_referents(cached) if type(one) is dict and one is not vars(cached)]
    return dicts[0] if len(dicts) == 1 else None


def _argument(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if len(arguments) == 1 and type(arguments[0]) in (str, int) else arguments
