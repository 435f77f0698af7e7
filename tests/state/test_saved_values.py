"""Saved state that is damaged or from elsewhere is refused with an error that says where and how."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from state.saved_values import SavedValues


def test_entries_are_read_by_type() -> None:
    saved = SavedValues(
        {"n": 1.5, "i": 2, "none": None, "m": {"a": 1}, "l": {"a": [1, 2.5]}, "t": {"a": {"b": 3}}}, "thing"
    )
    assert saved.number("n") == 1.5
    assert saved.number("i") == saved.integer("i") == saved.optional_integer("i") == 2
    assert saved.optional_integer("none") is saved.optional_integer("absent") is None
    assert saved.numbers("m") == {"a": 1}
    assert saved.number_lists("l") == {"a": (1, 2.5)}
    assert saved.number_tables("t") == {"a": {"b": 3}}


def test_a_missing_entry_is_named_with_the_owner_and_what_there_is() -> None:
    with pytest.raises(ValueError, match="saved thing: 'laps' is missing; found 'n'"):
        SavedValues({"n": 1}, "thing").integer("laps")
    with pytest.raises(ValueError, match="saved thing: 'laps' is missing; found nothing"):
        SavedValues({}, "thing").integer("laps")


@pytest.mark.parametrize(
    ("value", "read", "message"),
    [
        ("1", SavedValues.number, "'x' is '1', expected a number"),
        (True, SavedValues.number, "'x' is True, expected a number"),
        (1.5, SavedValues.integer, "'x' is 1.5, expected an integer"),
        (True, SavedValues.optional_integer, "'x' is True, expected an integer"),
        ([1], SavedValues.numbers, r"'x' is \[1\], expected an object"),
        ({"a": None}, SavedValues.numbers, "'x/a' is None, expected a number"),
        ({"a": "12"}, SavedValues.number_lists, "'x/a' is '12', expected a list of numbers"),
        ({"a": [None]}, SavedValues.number_lists, "'x/a' is None, expected a number"),
        ({"a": {"b": None}}, SavedValues.number_tables, "saved thing, x: 'a/b' is None, expected a number"),
    ],
)
def test_an_entry_of_the_wrong_type_is_named_with_its_value(
    value: object, read: Callable[[SavedValues, str], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(SavedValues({"x": value}, "thing"), "x")
