"""What ends programs or coroutines, raised by a user's environment, network or loss, is that code's failure, with its
name and traceback, and the run's workers and event loop live on to report it."""

from __future__ import annotations

import asyncio
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import pytest
import trio
from torch import Tensor

from losses import Loss, Minibatch, PolicyEvaluation
from orchestrator import Hook, MetricsConfig, PolicyConfig, Trainer
from orchestrator.config.error import ConfigurationError
from orchestrator.config.own_code import OwnCodeError
from orchestrator.environments import EnvironmentFailed, InvalidEnvironment
from orchestrator.policies import NetworkError, Spaces
from state.user_code import UserCodeFailed
from tests.orchestrator.training import losses_with, small_config
from tests.small_networks import Shared

if TYPE_CHECKING:
    from state import TrainerState
    from tests.orchestrator.training import Backend

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
HERE = "tests.orchestrator.test_odd_errors"
both_backends = pytest.mark.parametrize(
    ("backend", "anyio_backend"),
    # What is raised in another process comes from there as the same reply on any event loop.
    [("inline", "asyncio"), ("inline", "trio"), ("process", "asyncio")],
)


class Odd(BaseException):
    """Whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


def fail(how: str) -> None:
    match how:
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "asyncio":
            raise asyncio.CancelledError
        case "trio":
            raise trio.Cancelled._create()  # pyright: ignore
        case "generator":
            raise GeneratorExit
        case "stop":
            raise StopIteration
        case "group":
            raise BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()])
        case _:
            raise Odd


NAMES = {
    "exit": "SystemExit: 3",
    "interrupt": "KeyboardInterrupt",
    "asyncio": "CancelledError",
    "trio": "Cancelled",
    "generator": "GeneratorExit",
    "stop": "StopIteration",
    "group": "BaseExceptionGroup: several",
    "odd": "Odd, whose text cannot be had",
}
in_all_ways = pytest.mark.parametrize("how", NAMES)
in_two_ways = pytest.mark.parametrize("how", ["exit", "asyncio"])


class Failing(gymnasium.Env[Any, Any]):
    """Fails at the 20th step of a copy, in the reset after it, when it is made, closed or asked for a number."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, how: str, where: str) -> None:
        self._how, self._where, self._steps = how, where, 0
        self._fail("make")

    def _fail(self, where: str) -> None:
        if where == self._where:
            fail(self._how)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self._steps:
            self._fail("reset")
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        reward: Any = 1.0
        if self._steps == 20:
            self._fail("step")
            if self._where == "conversion":
                reward = Number(self._how)
        return np.zeros(3, np.float32), reward, self._steps == 20, False, {}


class Number:
    def __init__(self, how: str) -> None:
        self._how = how

    def __array__(self, *_: object, **__: object) -> Any:
        fail(self._how)


def make(**options: Any) -> Failing:
    return Failing(**options)


def config_for(backend: Backend = "inline", **options: Any) -> Any:
    return small_config(
        epochs=50, num_environments=2, backend=backend, environment=f"{HERE}:make", environment_options=options
    )


class FailureHook(Hook):
    def __init__(self) -> None:
        self.failures = 0

    async def on_failure(self, state: TrainerState) -> None:
        self.failures += 1


async def error_of(config: Any, **arguments: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:
        await Trainer(config, **arguments).run()
    return caught.value


def told_of(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


@both_backends
@in_all_ways
async def test_an_environment_fails_with_its_copy_and_step(how: str, backend: Backend) -> None:
    failure = FailureHook()
    error = await error_of(config_for(backend, how=how, where="step"), hooks=[failure])
    assert isinstance(error, EnvironmentFailed)
    assert f"environment '{HERE}:make': step 20 of copy 0 of 2 failed with {NAMES[how]}" in str(error)
    assert "in fail" in told_of(error), "the traceback"
    assert failure.failures == 1


@both_backends
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("reset", "reset of copy 0 of 2 after step 20 failed with SystemExit: 3"),
        ("conversion", "step 20 of copy 0 of 2 failed with SystemExit: 3"),
    ],
)
async def test_resets_and_conversions_fail_as_steps_do(where: str, message: str, backend: Backend) -> None:
    error = await error_of(config_for(backend, how="exit", where=where))
    assert isinstance(error, EnvironmentFailed)
    assert message in str(error)


@both_backends
@in_two_ways
async def test_an_environment_that_cannot_be_made_is_named(how: str, backend: Backend) -> None:
    error = await error_of(config_for(backend, how=how, where="make"))
    assert isinstance(error, InvalidEnvironment)
    assert NAMES[how] in str(error)
    assert f"how='{how}'" in str(error)


class FailingNetwork(Shared):
    """Fails when it acts or learns for the tenth time."""

    def __init__(self, spaces: Spaces, how: str, learning: bool) -> None:
        super().__init__(spaces)
        self._how, self._learning, self._calls = how, learning, 0

    def forward(self, observation: Any) -> tuple[Tensor, Tensor]:
        self._calls += self.training == self._learning
        if self._calls == 10:
            fail(self._how)
        return super().forward(observation)


def __getattr__(name: str) -> Any:
    kind, _, how = name.partition("_")
    if kind in ("acting", "learning", "factory", "sink", "loss"):
        return {
            "acting": lambda spaces: FailingNetwork(spaces, how, learning=False),
            "learning": lambda spaces: FailingNetwork(spaces, how, learning=True),
            "factory": lambda spaces: fail(how),
            "sink": lambda: fail(how),
            "loss": lambda: fail(how),
        }[kind]
    raise AttributeError(name)


@both_backends
@pytest.mark.parametrize("kind", ["acting", "learning"])
@in_two_ways
async def test_a_network_fails_with_its_name(kind: str, how: str, backend: Backend) -> None:
    network = f"{HERE}:{kind}_{how}"
    config = small_config(epochs=50, backend=backend, policy=PolicyConfig(network=network))
    error = await error_of(config)
    assert isinstance(error, UserCodeFailed)
    assert f"the network '{network}' in " in str(error)
    assert f"raised {NAMES[how]}" in str(error)
    assert "in forward" in told_of(error)


class FailingLoss(Loss):
    def __init__(self, how: str, where: str) -> None:
        super().__init__()
        self._how, self._where = how, where

    def _fail(self, where: str) -> None:
        if where == self._where:
            fail(self._how)

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        if minibatch.epoch == 1:
            self._fail("compute")
            if self._where == "backward":
                evaluation.value.register_hook(lambda _: fail(self._how))
        return evaluation.value.square().mean()

    def observe(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> None:
        self._fail("observe")

    def on_new_training_run(self, state: TrainerState) -> None:
        self._fail("on_new_training_run")

    def on_mb_end(self, state: TrainerState) -> None:
        self._fail("on_mb_end")

    def on_epoch_end(self, state: TrainerState) -> None:
        self._fail("on_epoch_end")

    def experience_fields(self) -> Any:
        self._fail("experience_fields")
        return ()

    def attach(self, context: Any) -> None:
        super().attach(context)
        self._fail("attach")


class Ending(Loss):
    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        raise anyio.EndOfStream


@both_backends
async def test_an_error_that_the_loop_itself_uses_is_one_too(backend: Backend) -> None:
    error = await error_of(small_config(epochs=50, backend=backend), losses=losses_with(Ending()))
    assert isinstance(error, anyio.EndOfStream)
    assert "the loss 'ending' in epoch 1" in told_of(error)


@in_all_ways
async def test_a_loss_fails_with_its_name_and_minibatch(how: str) -> None:
    failure = FailureHook()
    config = small_config(epochs=50, backend="inline" if how == "odd" else "process")
    error = await error_of(config, losses=losses_with(FailingLoss(how, "compute")), hooks=[failure])
    assert isinstance(error, UserCodeFailed)
    assert f"the loss 'failing_loss' in epoch 2, update epoch 1, minibatch 1 raised {NAMES[how]}" in str(error)
    assert "in compute" in told_of(error)
    assert failure.failures == 1


@pytest.mark.parametrize(
    "where", ["observe", "on_new_training_run", "on_mb_end", "on_epoch_end", "experience_fields", "attach"]
)
async def test_what_a_loss_does_besides_fails_with_its_name_too(where: str) -> None:
    config = small_config(epochs=50)
    error = await error_of(config, losses=losses_with(FailingLoss("exit", where)))
    assert isinstance(error, UserCodeFailed)
    assert f"{where} of 'failing_loss'" in str(error)
    assert "raised SystemExit: 3" in str(error)


@both_backends
async def test_an_error_out_of_torchs_engine_says_where_it_was_raised(backend: Backend) -> None:
    config = small_config(epochs=50, backend=backend)
    error = await error_of(config, losses=losses_with(FailingLoss("exit", "backward")))
    assert isinstance(error, UserCodeFailed)
    assert "code at " in str(error)
    assert "test_odd_errors.py" in told_of(error)


async def test_an_ordinary_error_of_a_loss_stays_what_it_is_and_names_the_loss() -> None:
    class Dividing(Loss):
        def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
            raise ZeroDivisionError("by zero")

    error = await error_of(small_config(), losses=losses_with(Dividing()))
    assert isinstance(error, ZeroDivisionError)
    assert "raised by the loss 'dividing' in epoch 1, update epoch 1, minibatch 1" in told_of(error)


@pytest.mark.parametrize("how", ["exit", "interrupt", "trio"])
async def test_functions_that_settings_name_fail_with_their_names(how: str) -> None:
    network = small_config(policy=PolicyConfig(network=f"{HERE}:factory_{how}"))
    error = await error_of(network)
    assert isinstance(error, NetworkError)
    assert f"{HERE}:factory_{how} failed" in str(error)
    loss = small_config()
    error = await error_of(replace(loss, losses=replace(loss.losses, names=(f"{HERE}:loss_{how}",))))
    assert isinstance(error, OwnCodeError)
    assert f"{HERE}:loss_{how} failed with {NAMES[how]}" in str(error)
    if how != "interrupt":  # which in the main thread is Ctrl-C
        with pytest.raises(OwnCodeError, match=f"{HERE}:sink_{how} failed with {NAMES[how]}"):
            Trainer(replace(network, metrics=MetricsConfig(sinks=(f"{HERE}:sink_{how}",))))


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_module_that_ends_the_program_when_it_is_imported_is_named(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_the_program.py").write_text("import sys\nsys.exit(4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    if replaced:  # as an installed package may do that wants to know of it
        installed = tmp_path / "site-packages"
        installed.mkdir()
        (installed / "replaces_exit.py").write_text("def leave(code):\n    raise SystemExit(code)\n")
        monkeypatch.syspath_prepend(installed)
        monkeypatch.setattr(sys, "exit", importlib.import_module("replaces_exit").leave)
    for setting in (
        {"environment": "ends_the_program:make"},
        {"policy": PolicyConfig(network="ends_the_program:make")},
    ):
        error = await error_of(small_config(**setting))
        assert isinstance(error, ConfigurationError)
        assert "SystemExit: 4" in " ".join(str(error).split())
        assert "ends_the_program.py:2" in str(error)


@pytest.mark.parametrize("code", ["import json\njson.loads('{')\n", "import torch\ntorch.nn.Linear(-1, -1)\n"])
async def test_the_line_of_a_module_is_named_whose_call_of_a_library_fails(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "calls_a_library.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    error = await error_of(small_config(environment="calls_a_library:make"))
    assert isinstance(error, ConfigurationError)
    assert "calls_a_library.py:2" in str(error)
