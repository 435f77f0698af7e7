"""Finds what a name of an environment stands for, and says what is wrong with a name before anything is made."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from orchestrator.config.own_code import StandardLibraryError, attribute_of, import_module
from orchestrator.environments.spaces import InvalidEnvironment

EnvironmentFunction = Callable[..., object]
"""A user's own function (or class) that makes one gymnasium environment from the options as keywords."""

# Packages that register their environments only when imported, by the namespace of the ids.
_NAMESPACES = {"ALE": "ale_py"}
_EXTRAS = {"Box2D": "box2d", "box2d": "box2d", "mujoco": "mujoco", "ale_py": "atari"}
_DISTRIBUTION = "async-rl-orchestrator"


def find(environment: str) -> EnvSpec | EnvironmentFunction:
    """What `environment` names: a gymnasium id, "module:id", or "package.module:function".

    Raises InvalidEnvironment saying what is unknown, with the nearest names there are.
    """
    module_name, colon, name = environment.rpartition(":")
    if not colon:
        _import_namespace(environment)
        return _registered(environment, environment)
    try:
        module = import_module(module_name)
    except StandardLibraryError as error:
        raise InvalidEnvironment(f"environment {environment!r}: {error}") from error
    except Exception as error:
        raise InvalidEnvironment(
            f"environment {environment!r}: importing {module_name!r} failed with {type(error).__name__}: {error};"
            " expected 'package.module:function' or 'module:id' of a module that can be imported from here"
        ) from error
    if not all(part.isidentifier() for part in name.split(".")):
        return _registered(name, environment)
    try:
        found = attribute_of(module, name)
    except AttributeError:
        found = None
    except StandardLibraryError as error:
        raise InvalidEnvironment(f"environment {environment!r}: {error}") from error
    if callable(found):
        return found
    if name in gymnasium.registry:
        return _registered(name, environment)
    problem = f"module {module_name!r} has no {name!r}" if found is None else f"{name!r} is a {type(found).__name__}"
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise InvalidEnvironment(
        f"environment {environment!r}: {problem}, expected a function that returns a gymnasium.Env"
        f"{_nearest(name, functions)}"
    )


def check_environment(environment: str) -> list[str]:
    """What is wrong with the name `environment`, without making one; the list is empty if nothing is.

    Imports the module that the environment is in, so that a missing package is found here.
    """
    try:
        found = find(environment)
        if isinstance(found, EnvSpec):
            _load(found, environment)
    except InvalidEnvironment as error:
        return [str(error)]
    return []


def missing_package(environment: str, error: ImportError | gymnasium.error.DependencyNotInstalled) -> str:
    """The message for an environment whose package is not installed."""
    extra = next((extra for package, extra in _EXTRAS.items() if package in f"{error}"), None)
    cure = f"; pip install '{_DISTRIBUTION}[{extra}]' installs it" if extra else ""
    return f"environment {environment!r} needs a package that is not installed: {error}{cure}"


def _registered(name: str, environment: str) -> EnvSpec:
    spec = gymnasium.registry.get(name)
    if spec is None:
        raise InvalidEnvironment(
            f"environment {environment!r} is not registered with gymnasium{_nearest(name, gymnasium.registry)};"
            " an environment of your own is named 'package.module:function'"
        )
    return spec


def _import_namespace(environment: str) -> None:
    package = _NAMESPACES.get(environment.partition("/")[0])
    if package is not None and environment not in gymnasium.registry:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InvalidEnvironment(missing_package(environment, error)) from error


def _load(spec: EnvSpec, environment: str) -> None:
    if not isinstance(spec.entry_point, str):
        return
    try:
        load_env_creator(spec.entry_point)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise InvalidEnvironment(missing_package(environment, error)) from error
    except Exception as error:
        raise InvalidEnvironment(
            f"environment {environment!r}: importing {spec.entry_point!r} failed with {type(error).__name__}: {error}"
        ) from error


def _nearest(name: str, names: Iterable[str]) -> str:
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(by_lower[match]) for match in close)}?" if close else ""
