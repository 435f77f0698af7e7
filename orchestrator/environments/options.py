"""Says what is wrong with the options for an environment before one is made."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import EnvSpec, load_env_creator

from orchestrator.config.error import nearest
from orchestrator.environments.registry import check_environment, find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_OF_MAKING = {"max_episode_steps": None, "disable_env_checker": None}
"""What `gymnasium.make` takes itself."""
_THREADS = "num_threads"
_FILLED = {"num_envs": 1}
"""What a vectorized form is given by those who make it."""


def problem_with_options(environment: str, options: Mapping[str, object], mode: str) -> tuple[str, str] | None:
    """What the environment takes, and a cure, if it takes other options than these; None if it may be made with them,
    or if there is no such environment.

    `mode` is that of `make_vector`. Makes no environment: what its constructor says of the values is found when it is
    called.
    """
    if check_environment(environment):
        return None
    problems: list[tuple[str, str]] = []
    for creator, fixed, ignored in _creators(environment, mode):
        try:
            signature = inspect.signature(creator)
        except (TypeError, ValueError):  # it says nothing of itself
            return None
        problem = _problem(signature, fixed, {name: value for name, value in options.items() if name not in ignored})
        if problem is None:
            return None
        problems.append(problem)
    return problems[0] if problems else None


def parameters_of(creator: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """The parameters of what makes an environment; none where it says nothing of itself."""
    try:
        return inspect.signature(creator).parameters
    except (TypeError, ValueError):
        return {}


def threads_of(creator: Callable[..., object], options: Mapping[str, object], threads: int) -> dict[str, object]:
    """The keyword that has a vector environment use so many `threads`, where it takes one that is not set yet: each of
    several, of groups and collectors, would else take all cores."""
    return {_THREADS: threads} if _THREADS in parameters_of(creator) and _THREADS not in options else {}


def _creators(
    environment: str, mode: str
) -> Iterator[tuple[Callable[..., object], Mapping[str, object], Mapping[str, object]]]:
    """Functions of which one makes it; with what else each is given, and the options that do not reach it."""
    found = find(environment)
    if not isinstance(found, EnvSpec):
        yield found, {}, {}
        return
    if mode != "native" and found.entry_point is not None:
        yield loaded(found.entry_point), found.kwargs, _OF_MAKING
    if mode != "sync" and found.vector_entry_point is not None:
        yield loaded(found.vector_entry_point), {**found.kwargs, **_FILLED}, {}


def loaded(entry_point: str | Callable[..., object]) -> Callable[..., object]:
    """What makes a registered environment."""
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def _problem(
    signature: inspect.Signature, fixed: Mapping[str, object], options: Mapping[str, object]
) -> tuple[str, str] | None:
    keywords = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and name not in _FILLED
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    unknown = [] if takes_any else [name for name in options if name not in keywords]
    required = [name for name, parameter in keywords.items() if parameter.default is parameter.empty]
    missing = [name for name in required if name not in options and name not in fixed]
    if not unknown and not missing:
        return None
    takes = ", ".join(keywords) or "it takes none"
    if unknown:
        cures = [f"{name}: {nearest(name, keywords) if keywords else 'leave it out'}" for name in unknown]
    else:
        cures = [f"give {name}, which has no default" for name in missing]
    return takes, "; ".join(cures)


def copied(options: Any) -> Any:
    """Options of an environment's own, with which it may do what it likes: not those of its copies, or the settings."""
    if type(options) is dict:
        return {key: copied(value) for key, value in options.items()}
    if type(options) in (list, tuple):
        return type(options)(map(copied, options))
    return options
