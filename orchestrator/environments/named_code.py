"""Classes and functions: which are known by name and which by their place, and what they are made of."""

from __future__ import annotations

import contextvars
import ctypes
import functools
import logging
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from typing import Any, cast

from orchestrator.environments.object_nodes import HEAP_TYPE, is_python_object, module_of

_WRAPPED = (types.FunctionType, functools._lru_cache_wrapper)  # pyright: ignore[reportPrivateUsage]
_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, logging.Logger)
_STATELESS = ("typing", "types", "functools", "operator", "_thread", "weakref", "ctypes", "_ctypes", "_contextvars")
"""Modules of types that hold no state of an environment, when a variable of its module is of one."""
_STATEFUL = (threading.local, contextvars.ContextVar, ctypes.Structure.__mro__[1])
"""Types of these that hold some; the last is the base of all values of C."""


def is_named(code: Any) -> bool:
    """Whether a class or function is what its module has under its name. All others were made at run time, maybe
    several of one name, and are known by their place."""
    if isinstance(code, type) and not code.__flags__ & HEAP_TYPE:
        return True
    found: Any = sys.modules.get(module_of(code))
    for part in code.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found is code or any(part is code for part in parts_of(found))


def parts_of(value: Any) -> tuple[Any, ...]:
    """What a property or another wrapper around functions was made of; nothing for all else."""
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel, value.__doc__
    if isinstance(value, functools.cached_property):
        return (cast("Any", value).func,)
    if isinstance(value, (staticmethod, classmethod)):
        return (cast("Any", value).__func__,)
    return ()


def functions_of(value: Any) -> Iterable[types.FunctionType]:
    """The functions in Python that calling or reading an attribute runs."""
    candidates = (value.__func__,) if isinstance(value, types.MethodType) else parts_of(value) or (value,)
    for candidate in candidates:
        function: Any = candidate
        while function is not None:
            if isinstance(function, types.FunctionType):
                yield function
            function = getattr(function, "__wrapped__", None) if isinstance(function, _WRAPPED) else None


def is_stateless(value: object) -> bool:
    """Whether a value, though nothing is known of what it is made of, can't be state."""
    known = callable(value) or module_of(type(value)) in _STATELESS
    return known and not isinstance(value, (Iterator, types.FunctionType, *_STATEFUL))


def is_held(value: Any) -> bool:
    """Whether a value is a class or function that was made at run time: state of whoever holds it."""
    return isinstance(value, (type, types.FunctionType)) and not is_named(value)


def is_data(value: Any) -> bool:
    """Whether a value in the namespace of code may be state, and is not code itself."""
    kind = cast("type[Any]", type(value))
    descriptor = hasattr(kind, "__get__") and not is_python_object(kind)
    return is_held(value) or (
        not isinstance(value, _CODE) and not descriptor and module_of(kind) not in ("typing", "abc")
    )
