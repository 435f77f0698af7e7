"""What objects are made of, and how their nodes look: see `object_graph`."""

from __future__ import annotations

import copyreg
import datetime
import hashlib
import pathlib
import random
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, cast

import numpy as np

from orchestrator.environments.cached_methods import remembered_by

Node: TypeAlias = "dict[str, Any]"
Path: TypeAlias = "tuple[Path, str] | str"
"""Where an object was found: the parent's path and the step from there. Made into text only for errors."""

AT, KIND = "at", "kind"
"""A reference is {"at": index of a node}; a node's "kind" says what it is."""
SCALARS = frozenset({bool, int, float, str, type(None)})
NUMPY_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
SINGLETONS: Mapping[str, Any] = {
    "Ellipsis": Ellipsis,
    "NotImplemented": NotImplemented,
    "numpy's generator": getattr(np.random.mtrand, "_rand", None),
    "python's generator": getattr(random, "_inst", None),
}
REDUCED: Mapping[str, Callable[..., Any]] = {
    kind.__name__: kind
    for kind in (
        *(complex, range, slice, Decimal, type(pathlib.Path())),
        *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone),
    )
} | {"Pattern": re.compile}
"""Types of values that can't change, by name: what makes one from the arguments that pickle would keep of it."""
LONG_INTEGER = 10_000
"""Bits beyond which an integer is written in hexadecimal: Python refuses to write long ones as decimals."""


class Graph(Protocol):
    """What the node is part of: see `object_graph`."""

    generators: bool
    """Whether the states of random generators count."""

    def reference(self, value: Any, path: Path) -> Any: ...

    def items(self, values: Any, path: Path) -> list[Any]: ...

    def named(self, values: Mapping[str, Any], path: Path) -> Node: ...

    def note_attributes(self, value: object, path: Path) -> None: ...

    def note_memory(self, begin: int, size: int, path: Path) -> None: ...


class CannotRestore(ValueError):
    """A saved state does not fit the objects that are there; they are as they were."""


class NotCapturable(Exception):
    """An object holds more than its attributes tell; the message says which, and why."""


def text_of(path: Path) -> str:
    steps: list[str] = []
    while isinstance(path, tuple):
        path, step = path
        steps.append(step)
    return path + "".join(reversed(steps))


def type_name(named: Any) -> str:
    """The name of a class or function: module and qualified name."""
    module = module_of(named)
    return f"{module}:{named.__qualname__}" if module else named.__qualname__


def module_of(named: Any) -> str:
    """Where a class or function is from; an empty text where nobody says so, as of the classes that SWIG makes."""
    module = getattr(named, "__module__", None)
    return module if isinstance(module, str) else ""


def address(array: np.ndarray[Any, Any]) -> int:
    return array.__array_interface__["data"][0]


@lru_cache(4096)
def slots_of(kind: type) -> dict[str, Any]:
    """The descriptors of all that a class and its bases declare in `__slots__`."""
    return {
        name: descriptor
        for base in reversed(kind.__mro__)
        if base.__flags__ & HEAP_TYPE
        for name, descriptor in vars(base).items()
        if isinstance(descriptor, types.MemberDescriptorType)
    }


def attributes_of(value: object) -> dict[str, Any]:
    """What an object holds in attributes, also in those of `__slots__`, and what its cached methods remember of it."""
    attributes = dict(getattr(value, "__dict__", {}))
    for name, descriptor in slots_of(type(value)).items():
        if _is_set(descriptor, value):
            attributes[name] = descriptor.__get__(value)
    return attributes | remembered_by(value)


@lru_cache(4096)
def is_python_object(kind: type) -> bool:
    """Whether objects of a class consist of their attributes and slots alone: what `object.__reduce_ex__` asks."""
    bases = kind.__mro__
    if kind is object or kind.__itemsize__ or not all(base is object or base.__flags__ & HEAP_TYPE for base in bases):
        return False
    slots = sum(isinstance(entry, types.MemberDescriptorType) for base in bases for entry in vars(base).values())
    words = slots + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__basicsize__ <= object.__basicsize__ + words * _WORD


def names_in(code: types.CodeType) -> Iterator[str]:
    """The global variables, attributes and modules that code mentions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def has_own_globals(function: types.FunctionType) -> bool:
    """Whether a function uses global variables that are those of no module: `exec` makes such functions."""
    variables = function.__globals__
    return variables.get("__name__") not in sys.modules and any(
        name in variables for name in names_in(function.__code__)
    )


def code_digest(code: types.CodeType) -> str:
    """Equal for functions that do the same in the same words; without names of files and numbers of lines."""
    digest = hashlib.sha256()
    _feed_code(digest.update, code)
    return digest.hexdigest()[:16]


def _feed_code(update: Callable[[bytes], None], code: types.CodeType) -> None:
    update(code.co_code)
    update(repr((code.co_names, code.co_varnames, code.co_freevars, code.co_flags)).encode())
    constants = code.co_consts
    documented = (
        code.co_flags & _HAS_DOCSTRING if sys.version_info >= (3, 13) else isinstance(next(iter(constants), None), str)
    )
    for constant in constants[1:] if documented else constants:
        if isinstance(constant, types.CodeType):
            _feed_code(update, constant)
        elif isinstance(constant, frozenset):
            update(repr(sorted(map(repr, cast("frozenset[Any]", constant)))).encode())
        else:
            update(repr(constant).encode())


def hash_is_a_number(value: Any) -> bool:
    """Whether a hash depends on the value alone, in every process."""
    if type(value) is tuple:
        return all(map(hash_is_a_number, cast("tuple[Any, ...]", value)))
    return type(value) in (bool, int, float) or isinstance(value, np.number)


def digest_of(nodes: list[Node]) -> str:
    """Equal for equal nodes."""
    digest = hashlib.sha256()
    _feed(digest.update, nodes)
    return digest.hexdigest()[:16]


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    if isinstance(value, np.ndarray):
        update(f"{value.dtype}{value.shape}".encode())
        update(value.tobytes())
    elif isinstance(value, (list, dict)):
        update(b"[" if isinstance(value, list) else b"{")
        for item in cast("dict[str, Any]", value).items() if isinstance(value, dict) else cast("list[Any]", value):
            for part in cast("tuple[Any, ...]", item if isinstance(value, dict) else (item,)):
                _feed(update, part)
        update(b"]")
    else:
        update(f"{type(value).__name__} {value!r};".encode())


def _is_set(descriptor: Any, value: object) -> bool:
    try:
        descriptor.__get__(value)
    except AttributeError:
        return False
    return True


HEAP_TYPE: int = copyreg._HEAPTYPE  # pyright: ignore[reportAttributeAccessIssue] - Py_TPFLAGS_HEAPTYPE
_HAS_DOCSTRING = 0x4000000
"""inspect.CO_HAS_DOCSTRING; before Python 3.13 the first constant of a function is its docstring, or is None."""
_WORD = 8 if sys.maxsize > 2**32 else 4
