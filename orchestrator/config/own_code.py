"""Code that a configuration names as `package.module:function`."""

from __future__ import annotations

import functools
import importlib
import traceback
from typing import TYPE_CHECKING, cast

from orchestrator.config.error import nearest

if TYPE_CHECKING:
    from collections.abc import Callable


class OwnCodeError(ValueError):
    """What is wrong with `package.module:function`, and what to do."""


def import_function(name: str) -> Callable[..., object]:
    """What `package.module:function` names. Raises OwnCodeError where it cannot be had or is no function."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        ours = module_name == missing or module_name.startswith(f"{missing}.")
        hint = "install it, or start in the folder that it is in" if ours else f"{module_name} imports it"
        raise OwnCodeError(f"there is no module {missing}: {hint}") from error
    except Exception as error:  # whatever a module of somebody else's raises is what the user must know
        raise OwnCodeError(f"correct the module: {type(error).__name__} at {place_of(error)}: {error}") from error
    try:
        target = cast(object, functools.reduce(getattr, attribute.split("."), module))
    except AttributeError as error:
        public = [entry for entry in dir(module) if not entry.startswith("_") and callable(getattr(module, entry))]
        raise OwnCodeError(f"{module_name} has no {attribute}: {nearest(attribute, public)}") from error
    if not callable(target):
        raise OwnCodeError(f"{name} is not a function but of type {type(target).__name__}")
    return target


def place_of(error: BaseException) -> str:
    """File and line where an error was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"
