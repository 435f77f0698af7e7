"""Makes the copies of an environment that one worker steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import TimeLimit

from orchestrator.config.error import shown
from orchestrator.config.own_code import OwnCodeError, call_function, place_of
from orchestrator.config.paths import PATH
from orchestrator.config.plugins import code_named
from orchestrator.environments.adaptation import NO_ADAPTATION, Adaptation
from orchestrator.environments.games import Game, as_game, is_of_agents
from orchestrator.environments.mettagrid import MettaGridVector, is_config
from orchestrator.environments.native import NativeEnvironment, agents_of
from orchestrator.environments.options import copied, loaded, parameters_of, threads_of
from orchestrator.environments.pettingzoo import PettingZooEnvironment
from orchestrator.environments.pufferlib import PufferEnv, PufferVector, out_of_emulation
from orchestrator.environments.registry import EnvironmentFunction, find, missing_package
from orchestrator.environments.returned import WrongReturn
from orchestrator.environments.serial import SerialEnvironment, give_up
from orchestrator.environments.single import SingleGame
from orchestrator.environments.spaces import InvalidEnvironment
from orchestrator.environments.vector import VectorEnvironment
from state.user_code import described, is_signal, user_code

Mode = Literal["auto", "native", "sync"]

_COUNT, _LIMIT, _RENDER = "num_envs", "max_episode_steps", "render_mode"
"""What functions that make environments take besides the options."""


def make_vector(
    environment: str,
    count: int,
    options: Mapping[str, object] | None = None,
    mode: Mode = "auto",
    adaptation: Adaptation = NO_ADAPTATION,
) -> VectorEnvironment:
    """`count` copies of `environment`, each made with `options` as keyword arguments, and adapted to the agent.

    "native" takes the environment's own vectorized form, "sync" steps single ones in order, and "auto" is native
    where a form in numpy exists and takes the options. What a function returns has one form: it is stepped as what it
    is. Raises InvalidEnvironment naming the environment for one that is unknown, whose constructor fails, or whose
    spaces are not supported.
    """
    if count < 1:
        raise ValueError(f"{count} copies of environment {environment!r} were asked for, expected at least 1")
    made = _make_vector(environment, count, dict(options or {}), mode, adaptation)
    if adaptation.types and not isinstance(made, PettingZooEnvironment):
        give_up(made)
        raise InvalidEnvironment(
            f"environment {environment!r} is no ParallelEnv of PettingZoo, whose types of agents"
            f" {PATH.policy.by_type} could give policies of their own; leave that out"
        )
    return made


def _make_vector(
    environment: str, count: int, keywords: dict[str, Any], mode: Mode, adaptation: Adaptation
) -> VectorEnvironment:
    found = find(environment)
    if not isinstance(found, EnvSpec):
        return _make_returned(environment, found, count, keywords, mode, adaptation)
    if mode == "native":
        return _make_native(environment, found, count, keywords, adaptation)
    if mode == "auto" and _has_numpy_form(found) and _may_be_native(found, adaptation):
        try:
            return _make_native(environment, found, count, keywords, adaptation)
        except InvalidEnvironment:
            # The vectorized form may know fewer options; if the single one fails too, its reason is the better.
            pass
    make_one: Any = partial(_make_one, environment, found, keywords, adaptation)
    return _make_copies(SerialEnvironment, environment, make_one, count, adaptation)


def make_single(
    environment: str, options: Mapping[str, object], adaptation: Adaptation = NO_ADAPTATION
) -> gymnasium.Env[Any, Any] | Game | NativeEnvironment:
    """One `environment` as gymnasium or PettingZoo knows it, made with `options`, in its wrappers; a vector environment
    where that is what has many agents. Raises as `make_vector`."""
    found, keywords = find(environment), dict(options)
    if isinstance(found, EnvSpec) or not _may_be_native(found, adaptation):
        return _make_one(environment, found, keywords, adaptation)
    made = _returned(environment, found, keywords, adaptation, 1)
    if isinstance(made, VectorEnv) and len(agents_of(made)) > 1:
        return _adapted(environment, made, adaptation)
    return _wrapped_in_all(environment, made, adaptation, limited=False)


def _has_numpy_form(found: EnvSpec) -> bool:
    if found.vector_entry_point is None or found.additional_wrappers:
        return False
    # A form in jax compiles for many seconds and copies every step's arrays from its device: only when asked for.
    return "jax" not in str(found.vector_entry_point).lower()


def _may_be_native(found: EnvSpec | EnvironmentFunction, adaptation: Adaptation) -> bool:
    """Whether a vectorized form can be adapted so: it is made with the time limit where it is registered with one, or
    where its function takes one."""
    if adaptation.wrappers:
        return False
    if adaptation.max_episode_steps is None:
        return True
    return found.max_episode_steps is not None if isinstance(found, EnvSpec) else _LIMIT in parameters_of(found)


def _not_adapted(environment: str, adaptation: Adaptation) -> InvalidEnvironment:
    what = "environment_wrappers" if adaptation.wrappers else _LIMIT
    return InvalidEnvironment(
        f"environment {environment!r}: its vectorized form cannot have {what}; expected the mode 'sync' or 'auto'"
        " with that, in which each copy has"
    )


def _make_native(
    environment: str, found: EnvSpec, count: int, options: dict[str, Any], adaptation: Adaptation
) -> VectorEnvironment:
    if found.vector_entry_point is None:
        raise InvalidEnvironment(
            f"environment {environment!r} has no vectorized form (a vector_entry_point registered with"
            " gymnasium); use the mode 'sync' or 'auto'"
        )
    if not _may_be_native(found, adaptation):
        raise _not_adapted(environment, adaptation)
    if adaptation.max_episode_steps is not None:
        options = options | {_LIMIT: adaptation.max_episode_steps}
    try:
        creator, given = loaded(found.vector_entry_point), {**found.kwargs, **options}
        keywords = copied(options) | threads_of(creator, given, min(adaptation.threads, count))
        vector = gymnasium.make_vec(found, num_envs=count, vectorization_mode="vector_entry_point", **keywords)
    except BaseException as error:
        if is_signal(error):
            raise
        raise _cannot_make(environment, found, options, error) from error
    _check_copies(environment, vector, count)
    return _adapted(environment, vector, adaptation)


def _make_returned(
    environment: str,
    function: EnvironmentFunction,
    count: int,
    options: dict[str, Any],
    mode: Mode,
    adaptation: Adaptation,
) -> VectorEnvironment:
    """What a function returns: a vector environment, or a single one for each copy."""
    adaptable = _may_be_native(function, adaptation)
    made = _returned(environment, function, options, adaptation, count if adaptable else 1)
    if isinstance(made, VectorEnv):
        if adaptable:
            return _adapted(environment, made, adaptation)
        if mode == "native":
            give_up(made)
            raise _not_adapted(environment, adaptation)
    elif mode == "native":
        give_up(made)
        raise InvalidEnvironment(
            f"environment {environment!r} has no vectorized form: it returned a single environment; use the mode"
            " 'sync' or 'auto', or return a gymnasium.vector.VectorEnv of num_envs copies"
        )
    first = [made]

    def make_one() -> Any:
        made = first.pop() if first else _returned(environment, function, options, adaptation, 1)
        return _wrapped_in_all(environment, made, adaptation, limited=False)

    kind = PettingZooEnvironment if is_of_agents(made) else SerialEnvironment
    return _make_copies(kind, environment, make_one, count, adaptation)


def _adapted(environment: str, vector: VectorEnv[Any, Any, Any], adaptation: Adaptation) -> NativeEnvironment:
    try:
        _check_spaces(environment, vector, "single_")
        return NativeEnvironment(environment, vector, adaptation)
    except BaseException:
        give_up(vector)
        raise


def _make_copies(
    kind: type[PettingZooEnvironment | SerialEnvironment],
    environment: str,
    make_one: Callable[[], Any],
    count: int,
    adaptation: Adaptation,
) -> VectorEnvironment:
    copies: list[Any] = []
    try:
        while len(copies) < count:
            copies.append(make_one())
        return kind(environment, copies, adaptation)
    except BaseException:
        give_up(*copies)
        raise


def _make_one(
    environment: str, found: EnvSpec | EnvironmentFunction, options: dict[str, Any], adaptation: Adaptation
) -> gymnasium.Env[Any, Any] | Game:
    if not isinstance(found, EnvSpec):
        made = _returned(environment, found, options, adaptation, 1)
        return _wrapped_in_all(environment, made, adaptation, limited=False)
    if adaptation.max_episode_steps is not None:
        options = options | {_LIMIT: adaptation.max_episode_steps}  # in the place of its own
    try:
        # SerialEnvironment checks what matters to it; gymnasium's checker warns about much that does not.
        made = gymnasium.make(found, **({"disable_env_checker": True} | copied(options)))
    except BaseException as error:
        if is_signal(error):
            raise
        raise _cannot_make(environment, found, options, error) from error
    return _wrapped_in_all(environment, made, adaptation, limited=True)


def _returned(
    environment: str, function: EnvironmentFunction, options: dict[str, Any], adaptation: Adaptation, count: int
) -> gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any] | Game:
    """What a function returns: a single environment, a game of many agents, or a vector environment of `count`
    copies."""
    parameters = parameters_of(function)
    of_vectors: dict[str, Any] = {}
    if _COUNT in parameters:
        of_vectors = {_COUNT: count}
        if _LIMIT in parameters and adaptation.max_episode_steps is not None:
            of_vectors[_LIMIT] = adaptation.max_episode_steps
        of_vectors |= threads_of(function, options, adaptation.threads)
    made = _called(environment, function, options | of_vectors, count)
    if of_vectors and (isinstance(made, gymnasium.Env) or is_of_agents(made)):  # it means something else by them
        give_up(made)
        made = _called(environment, function, options, count)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if isinstance(made, VectorEnv) and _copies_in(made) != count and not of_vectors and takes_any:
        give_up(made)
        made = _called(environment, function, options | {_COUNT: count}, count)
    if isinstance(made, VectorEnv):
        if _COUNT in options:
            give_up(made)
            cure = f"leave {_COUNT} out of its options: for vectors, it is {PATH.collection.num_environments}"
            raise InvalidEnvironment(f"environment {environment!r} returned {_kind_of(made)}; {cure}")
        _check_copies(environment, made, count, "" if of_vectors or takes_any else "let it take num_envs as a keyword")
        return made
    if not isinstance(made, gymnasium.Env) and not is_of_agents(made):
        raise InvalidEnvironment(
            f"environment {environment!r} returned {_kind_of(made)}, expected a gymnasium.Env, a"
            f" gymnasium.vector.VectorEnv of num_envs copies, or a pettingzoo.ParallelEnv; {_cure_for(made)}"
        )
    return cast("gymnasium.Env[Any, Any] | Game", made)


def _check_copies(environment: str, vector: VectorEnv[Any, Any, Any], count: int, cure: str = "") -> None:
    found = _copies_in(vector)
    if found != count:
        give_up(vector)
        cure = "let it be an int" if isinstance(found, str) else cure or "make as many as num_envs says"
        kind = _kind_of(vector)
        raise InvalidEnvironment(
            f"environment {environment!r} returned {kind} whose num_envs is {found}, expected {count}; {cure}"
        )


def _copies_in(vector: VectorEnv[Any, Any, Any]) -> int | str:
    """In words where its num_envs is no whole number."""
    rows = getattr(vector, _COUNT, None)
    return int(rows) // len(agents_of(vector)) if isinstance(rows, (int, np.integer)) else shown(rows)


def _called(environment: str, function: EnvironmentFunction, options: dict[str, Any], games: int) -> object:
    """What a function returns; `games` of it where that is one of other libraries."""
    takes = parameters_of(function)
    draws = _RENDER in takes or any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    try:
        # Games that are drawn here need not be told so. Others' error says what their functions lack.
        plain = options if draws else {name: value for name, value in options.items() if name != _RENDER}
        made = function(**copied(plain))
        if is_config(made):
            return MettaGridVector(made, games)
        if len(plain) < len(options):
            give_up(made)
            made = function(**copied(options))
    except BaseException as error:
        if is_signal(error):
            raise
        raise _cannot_make(environment, function, options, error) from error
    try:
        made = out_of_emulation(made)
    except WrongReturn as error:
        give_up(made)
        raise InvalidEnvironment(f"environment {environment!r} returned {error}") from None
    if not isinstance(made, (gymnasium.Env, VectorEnv, type)) and isinstance(made, PufferEnv):
        return PufferVector(made, games)
    return made


def _wrapped_in_all(
    environment: str,
    made: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any] | Game,
    adaptation: Adaptation,
    *,
    limited: bool,
) -> gymnasium.Env[Any, Any] | Game:
    try:
        if is_of_agents(made):
            made = as_game(environment, made)
            for wrapper in adaptation.wrappers:
                made = as_game(environment, _wrapped(environment, made, wrapper))
            return made
        made = cast("gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]", made)
        if isinstance(made, VectorEnv):
            _check_spaces(environment, made, "single_")
            if made.num_envs > 1:
                raise InvalidEnvironment(
                    f"environment {environment!r} has {made.num_envs} agents, expected one: a game of many can't be put"
                    f" in environment_wrappers, or be given {_LIMIT}; give it options of its own"
                )
            made = SingleGame(environment, made)
        if adaptation.max_episode_steps is not None and not limited:
            made = TimeLimit(made, adaptation.max_episode_steps)
        for wrapper in adaptation.wrappers:
            made = cast("gymnasium.Env[Any, Any]", _wrapped(environment, made, wrapper))
        _check_spaces(environment, made, "")
    except BaseException:
        give_up(made)
        raise
    return made


def _wrapped(environment: str, made: gymnasium.Env[Any, Any] | Game, wrapper: str) -> object:
    """The same kind of environment in a wrapper."""
    try:
        result = call_function(code_named(wrapper, "wrappers"), made)
    except OwnCodeError as error:
        raise InvalidEnvironment(f"environment {environment!r}: its wrapper {wrapper!r}: {error}") from error
    single = isinstance(made, gymnasium.Env)
    if not isinstance(result, gymnasium.Env) if single else not is_of_agents(result):
        cure = "return the wrapped environment" if result is None else _cure_for(result)
        expected = "gymnasium.Env" if single else "pettingzoo.ParallelEnv"
        raise InvalidEnvironment(
            f"environment {environment!r}: its wrapper {wrapper!r} returned {_kind_of(result)}, expected a"
            f" {expected}; {cure}"
        )
    return result


def _check_spaces(environment: str, made: object, prefix: str) -> None:
    for name in (f"{prefix}observation_space", f"{prefix}action_space"):
        with user_code(f"{name} of environment {environment!r}"):
            space = getattr(made, name, None)
        if not isinstance(space, gymnasium.Space):
            raise InvalidEnvironment(
                f"environment {environment!r} has {shown(space)} as its {name}, expected a space of gymnasium.spaces;"
                " assign one in its constructor"
            )


def _kind_of(made: object) -> str:
    return f"the class {made.__name__}" if isinstance(made, type) else f"a {type(made).__name__}"


def _cure_for(made: object) -> str:
    """What to do about a function that returns `made` for an environment."""
    if inspect.iscoroutine(made):
        made.close()
        return "write it as `def`, not `async def`"
    if isinstance(made, VectorEnv):
        return "wrap one copy"
    if isinstance(made, type):
        return "return an instance of it, made with the options"
    if made is None:
        return "does the function lack a `return`?"
    if type(made).__module__.partition(".")[0] == "gym":
        return "port it from gym to gymnasium, or wrap it with shimmy's GymV26CompatibilityV0 or GymV21CompatibilityV0"
    return "derive its class from gymnasium.Env, or from pettingzoo.ParallelEnv for many agents"


def _cannot_make(
    environment: str, found: EnvSpec | EnvironmentFunction, options: dict[str, Any], error: BaseException
) -> InvalidEnvironment:
    if isinstance(error, (ImportError, gymnasium.error.DependencyNotInstalled)):
        return InvalidEnvironment(missing_package(environment, error))
    given = ", ".join(f"{key}={shown(value)}" for key, value in options.items()) or "none"
    text, *_ = described(error).partition(" was raised from the environment creator for ")  # gymnasium repeats the rest
    if isinstance(found, EnvSpec):
        expected = "what gymnasium.make makes with them"
    else:
        expected = "a function that takes them as keywords and returns an environment"
    return InvalidEnvironment(
        f"environment {environment!r} could not be made with the options ({given}): {text}; expected {expected}:"
        f" correct the options, or what raised this (at {place_of(error.__cause__ or error)})"
    )
