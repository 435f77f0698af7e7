"""A captured environment goes on in another one exactly as it would have gone on itself."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import numpy as np
import pytest

from orchestrator.environments import VectorEnvironment, make_vector
from orchestrator.environments.capture import NotCapturable


def play(environment: VectorEnvironment, steps: int) -> list[Any]:
    played = []
    for index in range(steps):
        actions = np.arange(index, index + environment.count) % 2
        step = environment.step(actions)
        played.append([np.array(step.observation), step.reward.copy(), step.terminated.copy(), step.valid.copy()])
    return played


def through_a_file(value: Any) -> Any:
    """What survives being written as JSON with arrays beside it: no type beyond those that are promised."""
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        return {key: through_a_file(item) for key, item in value.items()}
    if isinstance(value, list):
        return [through_a_file(item) for item in value]
    return np.array(value) if isinstance(value, np.ndarray) else json.loads(json.dumps(value))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("CartPole-v1", "native"),
        ("CartPole-v1", "sync"),
        ("Acrobot-v1", "sync"),
        ("MountainCar-v0", "sync"),
        ("orchestrator.environments.memory:make", "sync"),
        ("tests.environments:make_counting", "sync"),
        ("tests.environments:make_wandering", "sync"),
        ("tests.environments:Wandering/NextStep-v0", "native"),
        ("tests.environments:Wandering/SameStep-v0", "native"),
    ],
)
def test_a_restored_environment_goes_on_bitwise_the_same(name: str, mode: Any) -> None:
    environment = make_vector(name, 3, mode=mode)
    environment.reset(5)
    play(environment, 37)
    state = environment.get_state()
    expected = play(environment, 60)
    other = make_vector(name, 3, mode=mode)
    other.reset(99)
    play(other, 3)
    other.set_state(through_a_file(state))
    for before, after in zip(expected, play(other, 60), strict=True):
        for left, right in zip(before, after, strict=True):
            np.testing.assert_array_equal(left, right)
    # What was captured is a copy: it can be restored again.
    environment.set_state(state)
    np.testing.assert_array_equal(play(environment, 1)[0][0], expected[0][0])


@pytest.mark.parametrize(
    "value", [[1, (2.5, "x")], {"a": np.float32(1.5)}, deque([1, 2], maxlen=2), (np.arange(3), None, True), 2**100]
)
def test_attributes_come_back_with_their_types(value: Any) -> None:
    environment, other = (make_vector("tests.environments:make_counting", 1) for _ in range(2))
    attributes, others = (vars(made._environments[0]) for made in (environment, other))  # type: ignore[attr-defined]
    attributes["memory"], others["memory"] = value, deque(maxlen=2) if isinstance(value, deque) else None
    state = environment.get_state()
    other.set_state(through_a_file(state))
    restored = others["memory"]
    assert repr(restored) == repr(value)
    assert restored is not value or not isinstance(value, (list, dict, deque))


def test_views_of_an_array_stay_views_of_it() -> None:
    environment = make_vector("tests.environments:make_counting", 1)
    attributes = vars(environment._environments[0])  # type: ignore[attr-defined]
    attributes["board"] = np.zeros((2, 2))
    attributes["row"] = attributes["board"][0]
    state = environment.get_state()
    environment.set_state(state)
    attributes["row"][:] = 1.0
    assert attributes["board"].sum() == 2.0


def test_what_could_not_be_captured_is_named() -> None:
    environment = make_vector("tests.environments:make_counting", 2)
    environment._environments[1].memory = {"handle": (1, object())}  # type: ignore[attr-defined]
    with pytest.raises(NotCapturable, match=r"copy 1: \.memory\['handle'\]\[1\] is of the type builtins:object"):
        environment.get_state()


def test_an_object_of_a_class_without_a_module_is_restored() -> None:
    environment = make_vector("tests.environments:make_foreign", 2)
    state = environment.get_state()
    environment.set_state(through_a_file(state))
    assert type(environment._environments[1].handle).__name__ == "Foreign"  # type: ignore[attr-defined]


def test_the_state_of_another_environment_is_refused() -> None:
    counting, wandering = make_vector("tests.environments:make_counting", 1), make_vector("CartPole-v1", 1, mode="sync")
    wandering.reset(0)
    state = wandering.get_state()
    with pytest.raises(ValueError, match="this is a 'Counting'"):
        counting.set_state(state)
    with pytest.raises(ValueError, match="the saved state is of 1 copies of the environment, here are 2"):
        make_vector("CartPole-v1", 2, mode="sync").set_state(state)
