"""Names of environments, what they stand for, and what is said about wrong ones."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from orchestrator.environments import InvalidEnvironment, check_environment, make_vector, problem_with_options
from orchestrator.environments.adaptation import Adaptation
from tests.orchestrator.training import FailingEnvironment


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        "Acrobot-v1",
        "tests.environments:make_counting",
        "tests.environments:Counting",
        "tests.environments:Counting/NextStep-v0",
        "orchestrator.environments.memory:make",
    ],
)
def test_known_environments_have_no_problems_and_can_be_made(name: str) -> None:
    assert check_environment(name) == []
    environment = make_vector(name, 2)
    environment.reset(0)
    environment.step(np.zeros(2, np.int64))
    environment.close()
    environment.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("cartpole-v1", "did you mean CartPole-v1"),
        ("CartPole", "did you mean CartPole-v"),
        ("lunarlander-v3", "did you mean LunarLander-v3"),
        ("tests.environments:make_countin", "did you mean make_counting"),
        ("tests.environments:Countin/NextStep-v0", "did you mean Counting/NextStep-v0"),
        (
            "tests.environments:OBSERVATION_SPACES",
            "tests.environments:OBSERVATION_SPACES is not a function but of type dict",
        ),
        ("no_such_package:make", "there is no module no_such_package: install it"),
        (":make", "Empty module name"),
        ("", "is not registered with gymnasium"),
        ("CartPole-v9", "? (an environment of your own"),
        ("quite another thing", "is not registered with gymnasium: use one of "),
    ],
)
def test_an_unknown_environment_is_reported_with_the_nearest_names(name: str, message: str) -> None:
    (problem,) = check_environment(name)
    assert message in problem
    assert repr(name) in problem
    with pytest.raises(InvalidEnvironment, match=r"^environment"):
        make_vector(name, 1)


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    def entry_point(**_: Any) -> Any:
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")

    gymnasium.register("NeedsBox2D-v0", entry_point)
    try:
        with pytest.raises(InvalidEnvironment, match=r"pip install 'async-rl-orchestrator\[box2d\]'"):
            make_vector("NeedsBox2D-v0", 1)
    finally:
        del gymnasium.registry["NeedsBox2D-v0"]


def test_what_is_not_there_any_more_is_told_as_gymnasium_does() -> None:
    def entry_point(**_: Any) -> Any:
        raise ImportError("The mujoco v2 and v3 based environments have been moved to gymnasium-robotics")

    gymnasium.register("Moved-v0", entry_point)
    try:
        with pytest.raises(InvalidEnvironment, match=r"have been moved to .*name another environment$"):
            make_vector("Moved-v0", 1)
    finally:
        del gymnasium.registry["Moved-v0"]


def _forget(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had not been imported yet."""
    for name, spec in list(gymnasium.registry.items()):
        if str(spec.entry_point).startswith(f"{package}."):
            monkeypatch.delitem(gymnasium.registry, name)
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("name", "package", "installed_by"),
    [
        ("MiniGrid-Empty-5x5-v0", "minigrid", "'async-rl-orchestrator[minigrid]'"),
        ("BabyAI-GoToRedBall-v0", "minigrid", "'async-rl-orchestrator[minigrid]'"),
        ("minigrid:MiniGrid-DoorKey-6x6-v0", "minigrid", "'async-rl-orchestrator[minigrid]'"),
        ("ALE/Pong-v5", "ale_py", "'async-rl-orchestrator[atari]'"),
        ("PongNoFrameskip-v4", "ale_py", "'async-rl-orchestrator[atari]'"),
        ("MinAtar/Breakout-v1", "minatar", "minatar"),
    ],
)
def test_a_name_whose_package_is_missing_is_told_what_brings_it(
    name: str, package: str, installed_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forget(package, monkeypatch)
    monkeypatch.setitem(sys.modules, package, None)
    (problem,) = check_environment(name)
    assert problem.startswith(f"environment {name!r} needs a package that is not installed: ")
    assert problem.endswith(f"; pip install {installed_by} installs it")


def test_names_that_a_package_registers_when_it_is_imported_need_no_module_before_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("minigrid")
    _forget("minigrid", monkeypatch)
    assert check_environment("MiniGrid-Empty-5x5-v0") == []
    assert "did you mean MiniGrid-Empty-5x5-v0" in check_environment("MiniGrid-Emty-5x5-v0")[0]


def test_a_missing_module_of_a_registered_environment_is_found_without_making_it() -> None:
    gymnasium.register("NeedsMore-v0", "no_such_package.environments:Environment")
    try:
        assert "No module named 'no_such_package'" in check_environment("NeedsMore-v0")[0]
    finally:
        del gymnasium.registry["NeedsMore-v0"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tests.environments:make_faulty", {"fault": "constructor"}, "OSError: the level file is missing"),
        ("tests.environments:make_counting", {"colour": "red"}, r"\(colour='red'\).*unexpected keyword"),
        ("CartPole-v1", {"colour": "red"}, r"\(colour='red'\).*unexpected keyword"),
        ("tests.environments:make_nothing", {}, "returned a NoneType, expected a gymnasium.Env"),
    ],
)
def test_a_constructor_that_fails_is_reported_with_name_and_options(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidEnvironment, match=message) as caught:
        make_vector(name, 2, options)
    assert caught.match(f"^environment '{name}'")


def test_an_unsupported_action_space_is_named_with_what_is_supported() -> None:
    message = r"action space Text\(.*, and Text is not supported; supported are Discrete, MultiDiscrete"
    with pytest.raises(InvalidEnvironment, match=message):
        make_vector("tests.environments:make_unsupported", 1, {"role": "action"})


def test_an_unsupported_observation_space_is_named_with_what_is_supported() -> None:
    message = r"observation space Text\(.*, and Text is not supported; supported are Box, Discrete"
    with pytest.raises(InvalidEnvironment, match=message):
        make_vector("tests.environments:make_unsupported", 1, {"role": "observation"})


def test_modes_choose_how_copies_are_stepped() -> None:
    assert make_vector("CartPole-v1", 2).native
    assert make_vector("CartPole-v1", 2, mode="native").native
    assert not make_vector("CartPole-v1", 2, mode="sync").native
    assert not make_vector("Acrobot-v1", 2).native
    with pytest.raises(InvalidEnvironment, match="'Acrobot-v1' has no vectorized form"):
        make_vector("Acrobot-v1", 2, mode="native")
    with pytest.raises(InvalidEnvironment, match="no vectorized form"):
        make_vector("tests.environments:make_counting", 2, mode="native")


def test_the_single_form_is_taken_where_only_it_knows_an_option() -> None:
    environment = make_vector("CartPole-v1", 2, {"disable_env_checker": True})
    assert not environment.native


def test_a_vector_environment_that_does_not_reset_its_copies_is_refused() -> None:
    with pytest.raises(InvalidEnvironment, match=r"supported are AutoresetMode.SAME_STEP and AutoresetMode.NEXT_STEP"):
        make_vector("tests.environments:Counting/Disabled-v0", 2, mode="native")


def test_no_copies_are_no_environment() -> None:
    with pytest.raises(ValueError, match="0 copies of environment 'CartPole-v1'"):
        make_vector("CartPole-v1", 0)


class FailsToClose(FailingEnvironment):
    closed: ClassVar[list[int]] = []

    def close(self) -> None:
        self.closed.append(len(self.closed))
        if len(self.closed) != 2:
            raise OSError(f"close {len(self.closed)} failed")


def fails_to_close() -> FailsToClose:
    return FailsToClose()


class WithoutClose:
    """A game of agents with different spaces; it has nothing to close."""

    agents: ClassVar[list[str]] = []
    possible_agents: ClassVar[list[str]] = ["red", "blue_wide"]

    def observation_space(self, agent: str) -> Any:
        return gymnasium.spaces.Box(-1, 1, (len(agent),))

    def action_space(self, agent: str) -> Any:
        return gymnasium.spaces.Discrete(2)


class NobodyThere(WithoutClose):
    possible_agents: ClassVar[list[str]] = []


class SpacelessAndStuck(gymnasium.Env[Any, Any]):
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = None  # type: ignore[assignment]

    def close(self) -> None:
        raise RuntimeError("it fails to close, too")


def wrapped_away(environment: object) -> None:
    """Forgets to return it."""


@pytest.mark.parametrize(
    ("name", "mode", "wrappers", "message"),
    [
        ("WithoutClose", "auto", (), "agent 'blue_wide' has the spaces"),
        ("WithoutClose", "native", (), "has no vectorized form"),
        ("WithoutClose", "auto", ("wrapped_away",), "returned a NoneType"),
        ("NobodyThere", "auto", (), "without possible_agents"),
        ("SpacelessAndStuck", "auto", (), "has None as its observation_space"),
    ],
)
def test_what_is_wrong_with_an_environment_is_told_though_it_cannot_be_closed(
    name: str, mode: Any, wrappers: tuple[str, ...], message: str
) -> None:
    adaptation = Adaptation(wrappers=tuple(f"{__name__}:{wrapper}" for wrapper in wrappers))
    with pytest.raises(InvalidEnvironment, match=message):
        make_vector(f"{__name__}:{name}", 2, mode=mode, adaptation=adaptation)


def test_every_copy_is_closed_although_some_fail_at_it() -> None:
    FailsToClose.closed.clear()
    vector = make_vector("tests.orchestrator.environments.test_make:fails_to_close", 3)
    with pytest.raises(ExceptionGroup, match="2 of 3 copies failed to close") as caught:
        vector.close()
    assert [str(error) for error in caught.value.exceptions] == ["close 1 failed", "close 3 failed"]


class Sized(gymnasium.Env[Any, Any]):
    """Needs `size`."""

    observation_space, action_space = gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)

    def __init__(self, size: int, colour: str = "red") -> None:
        if size < 1:
            raise RuntimeError("no room")


def make_anything(**options: object) -> object:
    raise RuntimeError(f"made with {options}")


HERE = "tests.orchestrator.environments.test_make"


@pytest.mark.parametrize(
    ("environment", "options", "mode", "cures"),
    [
        ("CartPole-v1", {"gravity": 9}, "auto", ("sutton_barto_reward, render_mode", "gravity: use one of sutton")),
        ("CartPole-v1", {"suton_barto_reward": True}, "sync", ("sutton", "did you mean sutton_barto_reward?")),
        ("CartPole-v1", {"id": "CartPole-v1"}, "auto", ("sutton", "id: ")),
        ("CartPole-v1", {"self": 3, "spec": 3}, "auto", ("sutton", "self: ")),
        ("CartPole-v1", {"num_envs": 3}, "native", ("max_episode_steps, render_mode", "num_envs: ")),
        (f"{HERE}:Sized", {}, "auto", ("size, colour", "give size, which has no default")),
        (f"{HERE}:Sized", {"size": 3, "color": "red"}, "auto", ("size, colour", "color: did you mean colour?")),
    ],
)
def test_options_that_an_environment_does_not_take_are_named_with_those_that_it_takes(
    environment: str, options: dict[str, object], mode: str, cures: tuple[str, str]
) -> None:
    found = problem_with_options(environment, options, mode)
    assert found is not None
    assert found[0].startswith(cures[0])
    assert cures[1] in found[1]


@pytest.mark.parametrize(
    ("environment", "options", "mode"),
    [
        ("CartPole-v1", {"max_episode_steps": 9, "render_mode": "rgb_array"}, "auto"),
        ("CartPole-v1", {"max_episode_steps": 9}, "native"),
        ("CartPole-v1", {"disable_env_checker": False}, "sync"),
        ("FrozenLake-v1", {"is_slippery": False}, "auto"),
        (f"{HERE}:Sized", {"size": 0}, "auto"),
        (f"{HERE}:make_anything", {"whatever": 1}, "auto"),
        ("Nowhere-v0", {"whatever": 1}, "auto"),
    ],
)
def test_options_that_may_be_right_are_left_to_the_environment(
    environment: str, options: dict[str, object], mode: str
) -> None:
    assert problem_with_options(environment, options, mode) is None


def test_an_environment_that_fails_to_be_made_says_where() -> None:
    with pytest.raises(InvalidEnvironment, match=r"RuntimeError: no room; .*\(at .*test_make.py:\d+\)$"):
        make_vector(f"{HERE}:Sized", 1, {"size": 0})
    with pytest.raises(InvalidEnvironment, match=r"TypeError: CartPoleEnv.* keyword argument 'gravity'; .*\(at "):
        make_vector("CartPole-v1", 1, {"gravity": 3})
