"""Code that a configuration names as `package.module:function`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING, cast

from orchestrator.config.error import nearest
from state.error import OrchestratorError
from state.user_code import described, is_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_INSTALLED = {"site-packages", "dist-packages"}  # below the standard library's folder, but no part of it


class OwnCodeError(OrchestratorError, ValueError):
    """What is wrong with `package.module:function`, and what to do."""


class StandardLibraryError(OwnCodeError):
    """A name that leads into Python's standard library, where there is nothing that a setting could mean."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is in Python's standard library, which no setting may call: name code of your own, in a module"
            " that has another name"
        )


def import_function(name: str) -> Callable[..., object]:
    """What `package.module:function` names.

    Raises OwnCodeError where it cannot be had or is no function, StandardLibraryError where it leads into Python's
    standard library.
    """
    module_name, _, attribute = name.partition(":")
    return function_in(import_module(module_name), attribute)


def call_function(name: str, *arguments: object) -> object:
    """What `package.module:function` returns for `arguments`.

    Raises as `import_function`; OwnCodeError also where it does not take them, or fails.
    """
    function = import_function(name)
    check_parameters(function, name, len(arguments))
    try:
        return function(*arguments)
    except BaseException as error:
        if isinstance(error, OrchestratorError) or is_signal(error):
            raise
        raise OwnCodeError(
            f"{name} failed with {described(error)} at {place_of(error)}: correct the function"
        ) from error


def check_parameters(function: Callable[..., object], name: str, count: int) -> None:
    """Raises OwnCodeError where a function cannot be called with `count` arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError as error:
        given = {0: "without arguments", 1: "with one argument"}.get(count, f"with {count} arguments")
        raise OwnCodeError(
            f"{name} is called {given}, but {error}: give its other parameters defaults, or name a function of yours"
            " that fills them in"
        ) from None
    except ValueError:
        return  # what is written in C may not tell


def import_module(name: str) -> types.ModuleType:
    """The module called `name`. Raises as `import_function`, for one of the standard library without importing it."""
    try:
        if is_standard_library(name):
            raise StandardLibraryError(name)
        module = importlib.import_module(name)
        _refuse_standard_library(module, name)  # another name for a module of the standard library
        return module
    except ModuleNotFoundError as error:
        missing = error.name or name
        ours = name == missing or name.startswith(f"{missing}.")
        hint = "install it, or start in the folder that it is in" if ours else f"{name} imports it"
        raise OwnCodeError(f"there is no module {missing}: {hint}") from error
    except StandardLibraryError:
        raise
    except BaseException as error:  # whatever another's module raises is what the user must know
        if is_signal(error):
            raise
        raise OwnCodeError(f"correct the module: {described(error)} at {place_of(error)}") from error


def function_in(module: types.ModuleType, path: str) -> Callable[..., object]:
    """What a dotted path leads to within a module.

    Raises as `import_function`; also where anything on the way is not defined by the module or another one, but by the
    standard library.
    """
    name = f"{module.__name__}:{path}"
    found: object = module
    for part in path.split("."):
        try:
            found = cast("object", getattr(found, part))
        except AttributeError as error:
            public = [entry for entry in dir(module) if not entry.startswith("_") and callable(getattr(module, entry))]
            raise OwnCodeError(f"{module.__name__} has no {path}: {nearest(path, public)}") from error
        _refuse_standard_library(found, name)
    if not callable(found):
        raise OwnCodeError(f"{name} is not a function but of type {type(found).__name__}")
    return found


def is_standard_library(module_name: str) -> bool:
    """Whether a module is part of Python's standard library. Imports nothing."""
    top = module_name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # there is none, or it was made by hand
        spec = None
    origin = None if spec is None else spec.origin
    if origin in ("built-in", "frozen"):
        return True
    if origin is None:
        return top in sys.stdlib_module_names
    place = Path(origin).resolve()
    return any(
        place.is_relative_to(folder) and _INSTALLED.isdisjoint(place.relative_to(folder).parts)
        for folder in _standard_folders()
    )


def place_of(error: BaseException) -> str:
    """File and line of the user's that led to an error; those where it was raised if only installed code did."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if _is_users(frame.filename)), frames[-1])
    return f"{frame.filename}:{frame.lineno}"


def _is_users(filename: str) -> bool:
    """Whether a file is neither of a package that is installed, nor Python's, nor of this project."""
    place = Path(filename).resolve()
    inside = (*_standard_folders(), Path(__file__).resolve().parent.parent)
    installed = not _INSTALLED.isdisjoint(place.parts) or any(place.is_relative_to(folder) for folder in inside)
    return not installed and not filename.startswith("<frozen ")


@functools.cache
def _standard_folders() -> tuple[Path, ...]:
    # Not platstdlib, which within a virtual environment is a separate folder with nothing of the library in it.
    return tuple({Path(sysconfig.get_path("stdlib")).resolve(), Path(types.__file__).parent.resolve()})


def _refuse_standard_library(found: object, name: str) -> None:
    for home in _homes(found):
        if is_standard_library(home):
            raise StandardLibraryError(f"{name} ({home})" if home != name else name)


def _homes(found: object) -> Iterator[str]:
    """The module that defines an object, and those of the functions that it was made from."""
    if isinstance(found, types.ModuleType):
        yield found.__name__
    elif isinstance(found, functools.partial):
        yield from _homes(cast("object", found.func))
    elif callable(found):
        if isinstance(found, types.MethodType):
            yield from _homes(found.__func__)
            return
        home = cast("object", getattr(found, "__module__", None))
        if not isinstance(home, str):  # a method in C: of a type, or of an object
            owner = cast("type", getattr(found, "__objclass__", None) or type(getattr(found, "__self__", found)))
            home = owner.__module__
        yield home
        wrapped = cast("object", getattr(found, "__wrapped__", None))
        if wrapped is not None and wrapped is not found:
            yield from _homes(wrapped)
