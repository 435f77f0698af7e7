"""An immutable mapping: reads like a dict, can't be changed, can be pickled."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from state.frozen_mapping import FrozenMapping, freeze


def test_it_reads_like_the_mapping_it_was_made_from_in_the_same_order() -> None:
    source = {"b": 1, "a": 2}
    frozen = FrozenMapping(source)

    assert frozen == source
    assert source == frozen
    assert frozen != {"b": 1}
    assert frozen != [("b", 1), ("a", 2)]
    assert list(frozen) == list(frozen.keys()) == ["b", "a"]
    assert list(frozen.values()) == [1, 2]
    assert list(frozen.items()) == [("b", 1), ("a", 2)]
    assert len(frozen) == 2
    assert frozen["a"] == 2
    assert frozen.get("a") == 2
    assert frozen.get("c") is None
    assert "a" in frozen
    assert "c" not in frozen
    assert dict(**frozen) == source


def test_it_can_be_made_from_pairs_or_from_nothing() -> None:
    assert FrozenMapping([("a", 1)]) == {"a": 1}
    assert FrozenMapping() == {}
    assert not FrozenMapping()


def test_a_missing_key_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="missing"):
        FrozenMapping({"a": 1})["missing"]


def test_later_changes_of_the_source_are_not_seen() -> None:
    source = {"a": 1}
    frozen = FrozenMapping(source)
    source["a"] = 2
    assert frozen["a"] == 1


def test_freezing_what_is_frozen_copies_nothing() -> None:
    frozen = FrozenMapping({"a": 1})
    assert FrozenMapping(frozen) is frozen


def test_no_way_of_changing_it_succeeds() -> None:
    frozen: Any = FrozenMapping({"a": 1})
    with pytest.raises(TypeError):
        frozen["a"] = 2
    with pytest.raises(TypeError):
        del frozen["a"]
    with pytest.raises(AttributeError, match="can't be changed"):
        frozen.extra = 1
    with pytest.raises(AttributeError, match="can't be changed"):
        frozen._items = {}
    with pytest.raises(AttributeError, match="can't be changed"):
        del frozen._items
    with pytest.raises(TypeError):
        frozen._items["a"] = 2
    with pytest.raises(AttributeError):
        frozen.update({"a": 2})
    assert not hasattr(frozen, "__dict__")
    assert frozen == {"a": 1}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_survives_pickling(protocol: int) -> None:
    frozen = FrozenMapping({"a": FrozenMapping({"b": (1, 2)})})
    again = pickle.loads(pickle.dumps(frozen, protocol))
    assert again == frozen
    assert type(again) is type(again["a"]) is FrozenMapping


def test_it_can_be_copied() -> None:
    frozen = FrozenMapping({"a": [1]})
    deep = copy.deepcopy(frozen)
    assert copy.copy(frozen) == deep == frozen
    assert deep["a"] is not frozen["a"]


def test_equal_ones_have_the_same_hash_whatever_their_order() -> None:
    assert hash(FrozenMapping({"a": 1, "b": 2})) == hash(FrozenMapping({"b": 2, "a": 1}))
    with pytest.raises(TypeError, match="unhashable"):
        hash(FrozenMapping({"a": []}))


def test_it_can_be_the_default_of_a_dataclass_field() -> None:
    default = FrozenMapping({"a": 1})

    @dataclass(frozen=True)
    class Holder:
        mapping: FrozenMapping[str, int] = default

    assert Holder().mapping is default
    assert hash(Holder()) == hash(Holder(FrozenMapping({"a": 1})))


def test_its_repr_shows_the_items() -> None:
    assert repr(FrozenMapping({"a": 1})) == "FrozenMapping({'a': 1})"
    assert repr(FrozenMapping()) == "FrozenMapping({})"


def test_freeze_goes_through_nested_containers() -> None:
    source = {"list": [1, {"set": {1, 2}}], "tuple": ([1],), "proxy": MappingProxyType({"a": []}), "text": "abc"}
    frozen = freeze(source)

    assert frozen == {
        "list": (1, FrozenMapping({"set": frozenset({1, 2})})),
        "tuple": ((1,),),
        "proxy": FrozenMapping({"a": ()}),
        "text": "abc",
    }
    assert type(frozen) is type(frozen["list"][1]) is type(frozen["proxy"]) is FrozenMapping
    assert type(frozen["list"][1]["set"]) is frozenset


def test_freeze_reaches_below_what_was_frozen_shallowly() -> None:
    assert freeze(FrozenMapping({"a": [1]})) == {"a": (1,)}


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", Point(1, 2), frozenset({1})])
def test_freeze_returns_anything_else_as_given(value: object) -> None:
    assert freeze(value) is value
