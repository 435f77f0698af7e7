"""Finds what a name of an environment stands for, and says what is wrong with a name before anything is made."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from orchestrator.config.error import nearest
from orchestrator.config.own_code import OwnCodeError, function_in, import_function, import_module, place_of
from orchestrator.config.plugins import code_named, plugin_names
from orchestrator.environments.envpool import find_task
from orchestrator.environments.mettagrid import find_game
from orchestrator.environments.pufferlib import find_ocean
from orchestrator.environments.spaces import InvalidEnvironment
from state.user_code import described, is_signal

EnvironmentFunction = Callable[..., object]
"""A user's own function (or class) that makes one gymnasium environment from the options as keywords."""

_NAMESPACES = {
    "ALE/": "ale_py",
    "MiniGrid-": "minigrid",
    "BabyAI-": "minigrid",
    "MinAtar/": "minatar.gym:register_envs",
}
"""What registers the ids that begin so: a package when it is imported, or a function of it."""
_FORMER_ATARI = re.compile(r"\w+NoFrameskip-v[04]")
"""Names of Atari's games before "ALE/", which the package registers, too."""
_EXTRAS = {
    "Box2D": "box2d",
    "box2d": "box2d",
    "mujoco": "mujoco",
    "ale_py": "atari",
    "minigrid": "minigrid",
    "envpool": "envpool",
    "mettagrid": "mettagrid",
}
_WITHOUT_EXTRA = ("minatar",)
"""Packages, named as pip knows them, that no extra brings."""
_LIBRARIES = {"envpool": find_task, "pufferlib": find_ocean, "mettagrid": find_game}
"""What finds the environment "library/name"."""
_DISTRIBUTION = "async-rl-orchestrator"


def find(environment: str) -> EnvSpec | EnvironmentFunction:
    """What `environment` names: a gymnasium id, one of another library ("envpool/Pong-v5"), a name that an installed
    package gives, "module:id", or "package.module:function".

    Raises InvalidEnvironment saying what is unknown, with the nearest names there are.
    """
    module_name, colon, name = environment.rpartition(":")
    if not colon:
        library, _, of_library = environment.partition("/")
        if library in _LIBRARIES:
            try:
                return _LIBRARIES[library](of_library)
            except ImportError as error:
                raise InvalidEnvironment(missing_package(environment, error)) from error
        _import_namespace(environment)
        if environment in gymnasium.registry or environment not in plugin_names("environments"):
            return _registered(environment, environment)
    try:
        if not colon:
            return import_function(code_named(environment, "environments"))
        module = import_module(module_name)
        if name not in gymnasium.registry and all(part.isidentifier() for part in name.split(".")):
            return function_in(module, name)
    except OwnCodeError as error:
        if module_name in _EXTRAS and importlib.util.find_spec(module_name) is None:
            raise InvalidEnvironment(
                missing_package(environment, ModuleNotFoundError(f"no module {module_name}"))
            ) from error
        raise InvalidEnvironment(f"environment {environment!r}: {error}") from error
    return _registered(name, environment)


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


def extra_of(environment: str) -> str | None:
    """The extra of this project that brings the package of an environment; None for one that needs none, or another's.
    Imports nothing.
    """
    spec = gymnasium.registry.get(environment)
    if spec is None:
        library = environment.partition("/")[0]
        home = _registered_by(environment) or (library if library in _LIBRARIES else environment.rpartition(":")[0])
    else:
        home = str(spec.entry_point)
    return next((extra for package, extra in _EXTRAS.items() if package in home), None)


def missing_package(environment: str, error: ImportError | gymnasium.error.DependencyNotInstalled) -> str:
    """The message for an environment whose package is not installed."""
    if not isinstance(error, (ModuleNotFoundError, gymnasium.error.DependencyNotInstalled)):
        # gymnasium, too, says so of old versions that it does not have any more.
        cure = "correct that import, or name another environment"
        return f"environment {environment!r}: {described(error)} at {place_of(error)}; {cure}"
    why = f"{error}"
    extra = next((extra for package, extra in _EXTRAS.items() if package in why), None)
    package = f"'{_DISTRIBUTION}[{extra}]'" if extra else next((one for one in _WITHOUT_EXTRA if one in why), None)
    cure = f"pip install {package} installs it" if package else "install it, or correct the import"
    if extra:  # of two commands, ours suffices
        why = re.split(", (?:run|you can install it)", why)[0]
    return f"environment {environment!r} needs a package that is not installed: {why}; {cure}"


def _registered(name: str, environment: str) -> EnvSpec:
    spec = gymnasium.registry.get(name)
    if spec is None:
        known = [*plugin_names("environments"), *gymnasium.registry]
        raise InvalidEnvironment(
            f"environment {environment!r} is not registered with gymnasium: {nearest(name, known)}"
            " (an environment of your own is named 'package.module:function', and one that a package registers when it"
            " is imported, 'package:id')"
        )
    return spec


def _registered_by(environment: str) -> str | None:
    if _FORMER_ATARI.fullmatch(environment):
        return _NAMESPACES["ALE/"]
    return next((by for beginning, by in _NAMESPACES.items() if environment.startswith(beginning)), None)


def _import_namespace(environment: str) -> None:
    by = _registered_by(environment)
    if by is not None and environment not in gymnasium.registry:
        package, _, function = by.partition(":")
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise InvalidEnvironment(missing_package(environment, error)) from error
        if function:
            getattr(module, function)()


def _load(spec: EnvSpec, environment: str) -> None:
    if not isinstance(spec.entry_point, str):
        return
    try:
        load_env_creator(spec.entry_point)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise InvalidEnvironment(missing_package(environment, error)) from error
    except BaseException as error:
        if is_signal(error):
            raise
        raise InvalidEnvironment(
            f"environment {environment!r}: importing {spec.entry_point!r} failed with {described(error)} at"
            f" {place_of(error)}; correct the module, or the entry_point it is registered with"
        ) from error
