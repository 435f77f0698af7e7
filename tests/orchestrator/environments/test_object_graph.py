"""Whatever an environment's attributes hold, and whoever shares it, is restored, or known to be not capturable."""

from __future__ import annotations

import copy
import datetime
import decimal
import functools
import itertools
import json
import pathlib
import random
import re
import weakref
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from enum import Enum
from types import CellType, FunctionType, MethodType
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.environments.capture import CannotRestore, EnvironmentState, NotCapturable
from state.plain_data import decode, encode
from tests.environments import Counting
from tests.resumed_environments import Mode, Place, Slotted, counter, scaled

SCALARS: tuple[Any, ...] = (
    None,
    True,
    -3,
    2**200,
    0.1,
    -0.0,
    float("inf"),
    "text",
    "$at",
    b"bytes",
    1j,
    Mode.WILD,
    Ellipsis,
)


class Thing:
    def method(self) -> None: ...


class Holding:
    __slots__ = ("__dict__", "_private", "things")


class Having(Counting):
    """An environment whose code has the classes and functions that are in its attributes."""

    def code(self) -> Any:
        return Thing, Holding, Mode, Place, Slotted, counter, scaled


# Each makes an object and gives a function that fills it with others.
Filling = Callable[[list[Any]], None]


def _sequence(kind: Any) -> Any:
    def make() -> tuple[Any, Filling]:
        made = kind()
        return made, made.extend

    return make


def _mapping(kind: Any) -> Any:
    def make() -> tuple[Any, Filling]:
        made = kind()
        return made, lambda others: made.update({(place, "key"): other for place, other in enumerate(others)})

    return make


def _thing() -> tuple[Any, Filling]:
    made = Thing()
    return made, lambda others: vars(made).update({f"part{place}": other for place, other in enumerate(others)})


def _holding() -> tuple[Any, Filling]:
    made = Holding()

    def fill(others: list[Any]) -> None:
        made.things = others[:1]
        if len(others) > 1:
            made._private = others[1]

    return made, fill


def _objects() -> tuple[Any, Filling]:
    made = np.empty(3, object)

    def fill(others: list[Any]) -> None:
        for place, other in enumerate(others[:3]):
            made[place] = other

    return made, fill


def _sliceable(array: np.ndarray[Any, Any]) -> bool:
    """Not those of objects, whose views cannot be captured."""
    return array.ndim > 0 and not array.dtype.hasobject


MUTABLE: tuple[Callable[[], tuple[Any, Filling]], ...] = (
    _sequence(list),
    _sequence(functools.partial(deque, maxlen=2)),
    _mapping(dict),
    _mapping(OrderedDict),
    _mapping(functools.partial(defaultdict, list)),
    _thing,
    _holding,
    _objects,
)
# Each makes an object of others, which can't change after that.
MADE_OF: tuple[Callable[[list[Any]], Any], ...] = (
    tuple,
    lambda others: functools.partial(scaled, *others, factor=2),
    lambda others: Place(others, 1.0),  # type: ignore[arg-type]
    lambda others: next((other.method for other in others if isinstance(other, Thing)), None),
    lambda others: next((other[1:] for other in others if isinstance(other, np.ndarray) and _sliceable(other)), None),
    lambda others: next((other.random for other in others if isinstance(other, np.random.Generator)), None),
)
LEAVES: tuple[Callable[[], Any], ...] = (
    lambda: np.arange(6.0).reshape(2, 3),
    lambda: np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    lambda: np.zeros((2, 0), np.bool_),
    lambda: np.float32(0.1),
    lambda: np.datetime64("2020-01-01"),
    lambda: np.random.default_rng(3),
    lambda: np.random.Generator(np.random.MT19937(3)),
    lambda: np.random.RandomState(3),
    lambda: {3, 1, 2},
    lambda: Counter({"a": 2}),
    lambda: bytearray(b"ab"),
    lambda: gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(3, seed=3)}),
    lambda: list(counter()),
    Slotted,
    lambda: np.sin,
    lambda: range(3),
)
OPAQUE: tuple[Callable[[], Any], ...] = (
    itertools.count,
    lambda: iter([1]),
    lambda: {"a", "b"},
    lambda: weakref.ref(Thing),
)


@st.composite
def attributes(draw: st.DrawFn) -> tuple[dict[str, Any], bool]:
    """Attributes that share objects and refer to each other, also in cycles; whether something opaque is in them."""
    objects: list[Any] = [draw(st.sampled_from(SCALARS))]
    fillings: list[tuple[Filling, list[int]]] = []
    count = draw(st.integers(1, 12))
    place = st.integers(0, count)
    for _ in range(count):
        what = draw(st.sampled_from(("scalar", "leaf", "mutable", "mutable", "made of")))
        if what == "scalar":
            objects.append(draw(st.sampled_from(SCALARS)))
        elif what == "leaf":
            objects.append(draw(st.sampled_from(LEAVES))())
        elif what == "mutable":
            made, fill = draw(st.sampled_from(MUTABLE))()
            objects.append(made)
            fillings.append((fill, draw(st.lists(place, max_size=4))))
        else:
            others = draw(st.lists(st.integers(0, len(objects) - 1), max_size=4))
            objects.append(draw(st.sampled_from(MADE_OF))([objects[other] for other in others]))
    holds_opaque = draw(st.integers(0, 5)) == 0
    for fill, others in fillings:
        fill([objects[other] for other in others])
    named = {
        f"name{number}": objects[index] for number, index in enumerate(draw(st.lists(place, min_size=1, max_size=6)))
    }
    if holds_opaque:
        named["opaque"] = [draw(st.sampled_from(OPAQUE))()]
    return named, holds_opaque


def differences(one: Any, other: Any) -> str | None:
    """What keeps two graphs from being the same, names for shared objects included."""
    there: dict[int, Any] = {}
    back: dict[int, Any] = {}
    pending: list[tuple[str, Any, Any]] = [("", one, other)]
    kept: list[Any] = []
    while pending:
        path, left, right = pending.pop()
        if type(left) is not type(right):
            return f"{path}: {left!r} and {right!r}"
        if left is right and (isinstance(left, (type, Enum, FunctionType)) or not _has_parts(left)):
            continue
        if not _has_parts(left):
            if repr(left) != repr(right):
                return f"{path}: {left!r} and {right!r}"
            continue
        if isinstance(left, MethodType) or (callable(left) and hasattr(left, "__self__")):
            pending.append((f"{path}.__self__", left.__self__, right.__self__))
            continue
        kept += [left, right]
        known = id(left) in there
        if there.setdefault(id(left), right) is not right or back.setdefault(id(right), left) is not left:
            return f"{path}: shared by others than before"
        if known:
            continue
        mine, theirs = _parts(left), _parts(right)
        if list(mine) != list(theirs):
            return f"{path}: {list(mine)} and {list(theirs)}"
        pending.extend((f"{path}.{name}", mine[name], theirs[name]) for name in mine)
    return None


def _has_parts(value: Any) -> bool:
    scalars = (
        bool,
        int,
        float,
        str,
        bytes,
        complex,
        type(None),
        type(Ellipsis),
        Enum,
        np.generic,
        range,
        np.ufunc,
        type,
        np.dtype,
    )
    return not isinstance(value, scalars)


def _parts(value: Any) -> dict[Any, Any]:
    match value:
        case np.ndarray() if value.dtype.hasobject:
            return dict(enumerate(value.ravel().tolist())) | {"shape": repr(value.shape)}
        case np.ndarray():
            owner = value.base if isinstance(value.base, np.ndarray) else None
            own = {"what": repr((value.dtype, value.shape, value.strides, value.tobytes(), value.flags.writeable))}
            if owner is None:
                return own | {"memory": _Memory.of(value)}
            base = owner.base if isinstance(owner.base, np.ndarray) else owner
            place = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
            return own | {"place": place, "memory": _Memory.of(base)}
        case _Memory():
            return {"bytes": value.content}
        case np.random.Generator():
            return {"bits": value.bit_generator}
        case np.random.BitGenerator():
            return {"state": repr(value.state), "spawn": repr(copy.copy(value.seed_seq).spawn(1))}  # type: ignore[attr-defined]
        case np.random.RandomState():
            return {"state": repr(value.get_state(legacy=False))}
        case functools.partial():
            return {"func": value.func, "keywords": value.keywords, **dict(enumerate(value.args))}
        case FunctionType():
            return {"name": value.__qualname__, **dict(enumerate(value.__closure__ or ()))}
        case CellType():
            return {"contents": value.cell_contents}
        case dict():
            extra = {"factory": value.default_factory} if isinstance(value, defaultdict) else {}
            return {"keys": repr(list(value)), **{repr(key): item for key, item in value.items()}, **extra}
        case list() | tuple() | deque() | set() | bytearray():
            return {**dict(enumerate(value)), "maxlen": getattr(value, "maxlen", None)}
        case _:
            slots = {
                name: getattr(value, name) for name in ("things", "_private", "x", "y", "count") if hasattr(value, name)
            }
            return {**slots, **getattr(value, "__dict__", {})}


class _Memory:
    """An array's memory: the same object for the same memory."""

    known: dict[int, _Memory] = {}  # noqa: RUF012

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.content = array.tobytes("A")

    @classmethod
    def of(cls, array: np.ndarray[Any, Any]) -> _Memory:
        return cls.known.setdefault(array.__array_interface__["data"][0], cls(array))


def through_a_file(state: Any) -> Any:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    return decode(json.loads(json.dumps(encode(state, arrays))), arrays)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(attributes(), attributes())
def test_random_graphs_of_attributes_are_restored_equal_or_are_known_to_be_not_capturable(
    saved: tuple[dict[str, Any], bool], other: tuple[dict[str, Any], bool]
) -> None:
    _Memory.known.clear()
    named, opaque = saved
    environments, others = [Having(), Having()], [Having(), Having()]
    state, restored = EnvironmentState(environments), EnvironmentState(others)
    for number, environment in enumerate(environments):  # copies share objects, too
        vars(environment).update(named)
        environment.own = [number]  # type: ignore[attr-defined]
    for environment in others:  # what is there before makes no difference
        vars(environment).update(other[0])
    if opaque:
        with pytest.raises(NotCapturable, match=r"^copy 0: \.opaque\[0\] "):
            state.capture()
        return
    captured = through_a_file(state.capture())
    restored.restore(captured)
    found = [vars(environment) for environment in others]
    assert differences([vars(environment) for environment in environments], found) is None
    assert [environment.own for environment in others] == [[0], [1]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["os:system", "builtins:eval", "subprocess:Popen", "pathlib:Path.unlink"])
@pytest.mark.parametrize("kind", ["function", "class", "builtin", "module", "instance"])
def test_a_state_cannot_name_code_that_the_environment_does_not_have(name: str, kind: str) -> None:
    environment = Counting()
    state = EnvironmentState([environment])
    environment.memory = [1]  # type: ignore[attr-defined]
    captured: Any = through_a_file(state.capture())
    (node,) = (node for node in captured["nodes"] if node["kind"] == "list")
    node.clear()
    node.update({"kind": kind, "name": name, "class": name, "code": "", "cells": [], "names": [], "values": []})
    with pytest.raises(CannotRestore, match="which this environment does not have|which has changed or is not there"):
        state.restore(captured)
    assert environment.memory == [1]  # type: ignore[attr-defined]


def test_the_comparison_of_these_tests_sees_what_is_shared() -> None:
    shared: list[Any] = [1]
    array = np.zeros(3)
    assert differences([shared, shared], [[1], [1]]) is not None
    assert differences([[1], [1]], [shared, shared]) is not None
    assert differences([array, array[1:]], [np.zeros(3), np.zeros(3)[1:]]) is not None
    assert differences([{"a": 0.0}], [{"a": -0.0}]) is not None
    assert differences([array, array[1:], shared], copy.deepcopy([array, array[1:], shared])) is not None


VALUES: tuple[Any, ...] = (
    2 - 1j,
    range(3, 9, 2),
    slice(1, None, 2),
    decimal.Decimal("1.50"),
    datetime.date(2026, 1, 2),
    datetime.time(1, 2, 3, 4, fold=1),
    datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.timezone(datetime.timedelta(hours=1), "here"), fold=1),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    datetime.timedelta(1, 2, 3),
    pathlib.Path("/a/../b c"),
    re.compile("a+", re.IGNORECASE),
    re.compile(b"a\\+"),
    random._inst,  # type: ignore[attr-defined]
    np.random.mtrand._rand,  # type: ignore[attr-defined]
    NotImplemented,
)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_that_cannot_change_are_restored(value: Any) -> None:
    environment, other = Having(), Having()
    state, restored = EnvironmentState([environment]), EnvironmentState([other])
    environment.value = value  # type: ignore[attr-defined]
    restored.restore(through_a_file(state.capture()))
    found: Any = other.value  # type: ignore[attr-defined]
    assert (type(found), found, repr(found)) == (type(value), value, repr(value))
    assert getattr(found, "fold", 0) == getattr(value, "fold", 0)
    assert getattr(found, "tzinfo", None) == getattr(value, "tzinfo", None)


def test_a_time_in_a_zone_of_a_database_cannot_be_captured() -> None:
    environment = Having()
    state = EnvironmentState([environment])
    environment.moment = datetime.datetime(2026, 1, 2, tzinfo=zoneinfo.ZoneInfo("UTC"))  # type: ignore[attr-defined]
    with pytest.raises(NotCapturable, match=r"^\.moment\[1\] is of the type zoneinfo:ZoneInfo"):
        state.capture()
