"""An immutable mapping that can be pickled, and a function that freezes nested containers.

`types.MappingProxyType` is immutable but can't be pickled, so it can't be sent to a worker.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from types import MappingProxyType
from typing import Any, TypeVar, cast, overload

K = TypeVar("K")
V = TypeVar("V", covariant=True)
T = TypeVar("T")


class FrozenMapping(Mapping[K, V]):
    """A read-only copy of a mapping, in its order; equal to any mapping with the same items. Hashable if these are.

    The copy is shallow: the values stay as they are (`freeze` goes deep). Freezing what is frozen already
    copies nothing.
    """

    __slots__ = ("_items",)
    _items: MappingProxyType[K, V]

    # In __new__ rather than __init__, which could be called again on a finished object and change it.
    def __new__(cls, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> FrozenMapping[K, V]:
        if type(items) is cls:
            return cast("FrozenMapping[K, V]", items)
        self = super().__new__(cls)
        # A proxy, so that not even the private attribute leads to something that can be written.
        object.__setattr__(self, "_items", MappingProxyType(dict(items)))
        return self

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    # The mixin's versions of these call back into Python for every item.
    def __contains__(self, key: object) -> bool:
        return key in self._items

    def keys(self) -> KeysView[K]:
        return self._items.keys()

    def values(self) -> ValuesView[V]:
        return self._items.values()

    def items(self) -> ItemsView[K, V]:
        return self._items.items()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self._items) == dict(cast("Mapping[object, object]", other))

    # With a hash it can be the default of a dataclass field, and a frozen dataclass that holds it has one too.
    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} can't be changed (setting {name!r})")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} can't be changed (deleting {name!r})")

    def __reduce__(self) -> tuple[type[FrozenMapping[K, V]], tuple[dict[K, V]]]:
        return type(self), (dict(self._items),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self._items)!r})"


@overload
def freeze(value: Mapping[K, object]) -> FrozenMapping[K, Any]: ...
@overload
def freeze(value: list[Any]) -> tuple[Any, ...]: ...
@overload
def freeze(value: set[T]) -> frozenset[T]: ...
@overload
def freeze(value: T) -> T: ...
def freeze(value: object) -> object:
    """Immutable counterpart of nested containers: mapping to `FrozenMapping`, list to tuple, set to frozenset.

    Goes through the values of mappings, lists and tuples. Everything else, subclasses of tuple among it, is
    returned as given.
    """
    if isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        return FrozenMapping({key: freeze(item) for key, item in mapping.items()})
    if isinstance(value, list) or type(value) is tuple:
        return tuple(freeze(item) for item in cast("Iterable[object]", value))
    if isinstance(value, set):
        return frozenset(cast("set[object]", value))
    return value
