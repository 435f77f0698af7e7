"""Checked reading of what a `to_dict` wrote and a checkpoint's JSON gave back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast


class SavedValues:
    """Reads typed entries of `data`; `owner` says in the errors whose saved state it is.

    Every method raises `ValueError` naming the owner, the entry, what was found and what was expected.
    Entries that nobody asks for are ignored.
    """

    def __init__(self, data: Mapping[str, object], owner: str) -> None:
        self._data = data
        self._owner = owner

    def number(self, key: str) -> float:
        return self._as_number(key, self._entry(key))

    def integer(self, key: str) -> int:
        value = self._entry(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._unexpected(key, value, "an integer")
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self._data.get(key) is None else self.integer(key)

    def numbers(self, key: str) -> dict[str, float]:
        """An object whose values are numbers."""
        return {name: self._as_number(f"{key}/{name}", value) for name, value in self.mapping(key).items()}

    def number_lists(self, key: str) -> dict[str, tuple[float, ...]]:
        """An object whose values are lists of numbers."""
        lists: dict[str, tuple[float, ...]] = {}
        for name, values in self.mapping(key).items():
            if not isinstance(values, Sequence) or isinstance(values, str):
                raise self._unexpected(f"{key}/{name}", values, "a list of numbers")
            numbers = cast("Sequence[object]", values)
            lists[name] = tuple(self._as_number(f"{key}/{name}", value) for value in numbers)
        return lists

    def number_tables(self, key: str) -> dict[str, dict[str, float]]:
        """An object of objects whose values are numbers."""
        tables = SavedValues(self.mapping(key), f"{self._owner}, {key}")
        return {name: tables.numbers(name) for name in self.mapping(key)}

    def mapping(self, key: str) -> Mapping[str, object]:
        value = self._entry(key)
        if not isinstance(value, Mapping):
            raise self._unexpected(key, value, "an object")
        return cast("Mapping[str, object]", value)

    def _entry(self, key: str) -> object:
        try:
            return self._data[key]
        except KeyError:
            found = ", ".join(map(repr, self._data)) or "nothing"
            raise ValueError(f"saved {self._owner}: {key!r} is missing; found {found}") from None

    def _as_number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._unexpected(key, value, "a number")
        return value

    def _unexpected(self, key: str, value: object, expected: str) -> ValueError:
        return ValueError(f"saved {self._owner}: {key!r} is {value!r}, expected {expected}")
