"""Functions that settings name and that make nothing of use end in an error that says what was wrong, what was expected
and what to do."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import anyio
import gymnasium
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from orchestrator import LossesConfig, MetricsConfig, PolicyConfig, Trainer
from orchestrator.config.error import ConfigurationError
from orchestrator.config.own_code import OwnCodeError
from orchestrator.environments import InvalidEnvironment
from tests.orchestrator.training import FailingEnvironment, small_config

HERE = "tests.orchestrator.test_own_functions"


class Spaceless(FailingEnvironment):
    observation_space = None  # pyright: ignore

    def __init__(self) -> None:
        pass


class Texts(FailingEnvironment):
    observation_space = spaces.Text(5)  # pyright: ignore


def make_sized(size: int) -> gymnasium.Env[Any, Any]:
    if size > 9:
        raise ValueError("only up to 9")
    return FailingEnvironment()


def make_importing() -> gymnasium.Env[Any, Any]:
    import no_such_package  # pyright: ignore

    return no_such_package.make()


def make_misspelling() -> gymnasium.Env[Any, Any]:
    from gymnasium import Envv  # pyright: ignore

    return Envv()


def make_nothing() -> None: ...


async def make_later() -> gymnasium.Env[Any, Any]:
    return FailingEnvironment()


def make_class() -> Any:
    return FailingEnvironment


def make_several() -> Any:
    return SyncVectorEnv([FailingEnvironment])


def make_spaceless() -> Any:
    return Spaceless()


def make_texts() -> Any:
    return Texts()


ENVIRONMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "make_sized": ({"size": 10}, "size=10.*ValueError: only up to 9; expected .*test_own_functions.py"),
    "make_importing": ({}, "not installed: No module named 'no_such_package'; install it, or correct the import"),
    "make_misspelling": (
        {},
        "cannot import name 'Envv'.* at .*test_own_functions.py.*correct that import",
    ),
    "make_nothing": ({}, "a NoneType, expected a gymnasium.Env, .*; does the function lack a `return`"),
    "make_later": ({}, "a coroutine, expected a gymnasium.Env, .*; write it as `def`, not `async def`"),
    "make_class": ({}, "the class FailingEnvironment, expected a gymnasium.Env, .*; return an instance of it"),
    "make_several": ({}, "a SyncVectorEnv whose num_envs is 1, expected 4; let it take num_envs"),
    "make_spaceless": ({}, "None as its observation_space, expected a space of gymnasium.spaces; assign one"),
    "make_texts": ({}, "space Text.*not supported; supported are Box.*: give the text as numbers"),
}


@pytest.mark.parametrize("function", ENVIRONMENTS)
def test_an_environment_that_cannot_be_made_says_what_is_expected_and_what_to_do(function: str) -> None:
    options, message = ENVIRONMENTS[function]
    config = small_config(environment=f"{HERE}:{function}", environment_options=options)
    with pytest.raises(InvalidEnvironment, match=message) as caught:
        anyio.run(Trainer(config).run)
    assert f"environment '{HERE}:{function}'" in str(caught.value)


class Sink:
    def __init__(self, path: str) -> None: ...
    def open(self, run: Any) -> None: ...
    def write(self, record: Any) -> None: ...
    def close(self) -> None: ...


def sink_class() -> Any:
    return Sink


def sinks() -> Any:
    return [Sink("")]


def loss_of(coefficient: float) -> Any:
    return coefficient


def network_of(spaces: Any, width: int) -> Any:
    return spaces, width


def network_of_nothing() -> Any: ...


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": LossesConfig(names=(f"{HERE}:loss_of",))}, "without arguments, but missing .* 'coefficient'"),
        ({"policy": PolicyConfig(network=f"{HERE}:network_of")}, "with one argument, but missing .* 'width'"),
        ({"policy": PolicyConfig(network=f"{HERE}:network_of_nothing")}, "with one argument, but too many positional"),
    ],
)
def test_a_function_that_takes_other_arguments_is_refused_before_the_start(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        anyio.run(Trainer(small_config(**settings)).run)
    text = " ".join(str(caught.value).split())
    assert re.search(message, text), text
    assert "or name a function of yours that fills them in" in text


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("Sink", OwnCodeError, "Sink is called without arguments, but missing a required argument: 'path': give"),
        (
            "sink_class",
            OwnCodeError,
            f"{HERE}:sink_class returned .*Sink is a class of metrics sinks; give an instance",
        ),
        ("sinks", OwnCodeError, f"{HERE}:sinks returned .*is no sink of metrics: it has no open, no write"),
    ],
)
def test_a_function_that_makes_no_sink_is_named(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Trainer(replace(small_config(), metrics=MetricsConfig(sinks=(f"{HERE}:{name}",))))


def test_functions_with_defaults_are_called_without_arguments() -> None:
    config = small_config(epochs=1, losses=LossesConfig(names=(f"{HERE}:loss_with_defaults",)))
    assert anyio.run(Trainer(config).run).epoch >= 1


def loss_with_defaults(coefficient: float = 0.5) -> Any:
    from losses import ppo_losses

    return ppo_losses(value_coefficient=coefficient)
