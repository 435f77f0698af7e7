"""Copies stepped together agree with single environments stepped by hand, in either way of resetting."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from orchestrator.environments import EnvironmentFailed, VectorEnvironment, make_vector
from orchestrator.environments.native import NativeEnvironment
from orchestrator.environments.serial import SerialEnvironment
from orchestrator.environments.spaces import array_specs, arrays_of
from orchestrator.environments.vector import copy_seeds
from state.experience import FieldSpec
from tests.environments import OBSERVATION_SPACES, Counting

COUNT = 3
WANDERING = "tests.environments:make_wandering"
OBSERVATIONS = list(OBSERVATION_SPACES)


def sample_actions(environment: VectorEnvironment, random: np.random.Generator) -> np.ndarray[Any, Any]:
    space = environment.action_space
    if isinstance(space, gymnasium.spaces.Box):
        return random.normal(size=(environment.count, int(np.prod(space.shape)))).astype(np.float32)
    highs = space.n if isinstance(space, gymnasium.spaces.Discrete) else space.nvec
    return random.integers(0, highs, (environment.count, *space.shape))


def expected_observation(name: str, raw: Any) -> dict[str, Any]:
    """What an agent should see of a raw observation: written out by hand for each of the test's spaces."""
    match name:
        case "discrete":
            return {"": raw + 2}
        case "multidiscrete":
            return {"": raw - np.array([1, 0])}
        case "tuple":
            return {"0": raw[0], "1": raw[1]}
        case "dict":
            return {"camera": raw["camera"], "compass": raw["compass"] - 1, "position": raw["position"]}
        case _:
            return {"": raw}


def assert_row(arrays: dict[str, Any], row: int, expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        np.testing.assert_array_equal(arrays[key][row], np.asarray(value).astype(arrays[key].dtype))


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_serial_copies_give_what_single_environments_give(observation: str) -> None:
    environment = make_vector(WANDERING, COUNT, {"observation": observation, "reuse": True})
    singles = [make_vector(WANDERING, 1, {"observation": observation})._environments[0] for _ in range(COUNT)]  # type: ignore[attr-defined]
    raw = [single.reset(seed=seed)[0] for single, seed in zip(singles, copy_seeds(7, COUNT), strict=True)]
    first = arrays_of(environment.reset(7))
    for row in range(COUNT):
        assert_row(first, row, expected_observation(observation, raw[row]))
    random = np.random.default_rng(0)
    ends = 0
    for _ in range(60):
        actions = sample_actions(environment, random)
        step = environment.step(actions)
        assert step.valid.all()
        expected_infos = []
        for row, single in enumerate(singles):
            last, reward, terminated, truncated, info = single.step(actions[row])
            assert step.reward[row] == np.float32(reward)
            assert (step.terminated[row], step.truncated[row]) == (terminated, truncated)
            if terminated or truncated:
                ends += 1
                expected_infos.append(info)
                assert step.final_observation is not None
                assert_row(arrays_of(step.final_observation), row, expected_observation(observation, last))
                last, _ = single.reset()
            assert_row(arrays_of(step.observation), row, expected_observation(observation, last))
        assert step.stats.get("steps", []) == [info["steps"] for info in expected_infos]
    assert ends > 10


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_native_copies_give_what_single_environments_give(observation: str, mode: str) -> None:
    environment = make_vector(f"tests.environments:Wandering/{mode}-v0", COUNT, {"observation": observation}, "native")
    assert environment.native
    singles = [make_vector(WANDERING, 1, {"observation": observation})._environments[0] for _ in range(COUNT)]  # type: ignore[attr-defined]
    raw = [single.reset(seed=7 + row)[0] for row, single in enumerate(singles)]  # how SyncVectorEnv seeds
    first = arrays_of(environment.reset(7))
    for row in range(COUNT):
        assert_row(first, row, expected_observation(observation, raw[row]))
    random = np.random.default_rng(0)
    resetting = [False] * COUNT
    ends = 0
    for _ in range(60):
        actions = sample_actions(environment, random)
        step = environment.step(actions)
        for row, single in enumerate(singles):
            assert step.valid[row] == (not resetting[row])
            if resetting[row]:
                last, _ = single.reset()
                reward, terminated, truncated = 0.0, False, False
            else:
                last, reward, terminated, truncated, _ = single.step(actions[row])
            assert step.reward[row] == np.float32(reward)
            assert (step.terminated[row], step.truncated[row]) == (terminated, truncated)
            ended = terminated or truncated
            ends += ended
            if ended and mode == "SameStep":
                assert step.final_observation is not None
                assert_row(arrays_of(step.final_observation), row, expected_observation(observation, last))
                last, _ = single.reset()
            resetting[row] = ended and mode == "NextStep"
            assert environment.idle[row] == resetting[row]
            assert_row(arrays_of(step.observation), row, expected_observation(observation, last))
    assert ends > 10


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations_are_in_the_space_that_agents_are_told(name: str) -> None:
    environment = make_vector(WANDERING, COUNT, {"observation": name})
    environment.reset(0)
    step = environment.step(np.zeros(COUNT, np.int64))
    arrays = arrays_of(step.observation)
    for key, spec in array_specs(environment.observation_space).items():
        assert arrays[key].shape == (COUNT, *spec.shape)
        assert arrays[key].dtype == spec.dtype
        assert arrays[key].dtype in (np.float32, np.uint8, np.int64, np.int8)
    for row in range(COUNT):
        single = {key: array[row] for key, array in arrays.items()}
        assert environment.observation_space.contains(single.get("", single))


@pytest.mark.parametrize("mode", ["sync", "native"])
@pytest.mark.parametrize("action", ["discrete", "shifted", "multidiscrete", "box", "grid"])
def test_every_action_of_the_agents_space_is_one_of_the_environment(action: str, mode: Any) -> None:
    environment = make_vector("tests.environments:Wandering/NextStep-v0", COUNT, {"action": action}, mode)
    environment.reset(0)
    random = np.random.default_rng(1)
    for _ in range(20):
        environment.step(3 * sample_actions(environment, random) if action in ("box", "grid") else
                         sample_actions(environment, random))  # fmt: skip


def test_box_actions_are_clipped_and_the_callers_array_is_left_alone() -> None:
    seen: list[Any] = []

    class Watching(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gymnasium.spaces.Box(np.float32([-0.5, -1.0]), np.float32([0.5, np.inf]))

        def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            seen.append(action.copy())
            return np.zeros(1, np.float32), 0.0, False, False, {}

    environment = SerialEnvironment("watching", [Watching()])
    environment.reset(0)
    actions = np.float32([[-3.0, 9.0]])
    environment.step(actions)
    np.testing.assert_array_equal(seen, [[-0.5, 9.0]])
    np.testing.assert_array_equal(actions, [[-3.0, 9.0]])


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (WANDERING, "sync"),
        ("tests.environments:Wandering/SameStep-v0", "native"),
        ("tests.environments:Wandering/NextStep-v0", "native"),
    ],
)
def test_the_values_of_an_info_belong_to_the_step_and_not_to_the_reset_after_it(name: str, mode: Any) -> None:
    environment = make_vector(name, COUNT, {}, mode)
    shapes = {"steps": (), "nested/reward": (), "nested/pair": (2,)}
    environment.record([FieldSpec(name, shape, "float32") for name, shape in shapes.items()])
    environment.reset(3)
    steps = np.zeros(COUNT, np.int64)
    episodes = 0
    for _ in range(40):
        step = environment.step(np.zeros(COUNT, np.int64))
        episodes += len(step.stats.get("steps", []))
        steps = np.where(step.valid, steps + 1, 0)
        np.testing.assert_array_equal(step.fields["steps"], steps)
        np.testing.assert_allclose(step.fields["nested/reward"], step.reward, rtol=1e-6)
        np.testing.assert_array_equal(step.fields["nested/pair"][:, 1], step.valid.astype(np.float64))
        ended = step.terminated | step.truncated
        assert step.stats.get("steps", []) == steps[ended].tolist()
        assert set(step.stats) <= {"steps", "nested/reward"}
        steps[ended & ~environment.idle] = 0
    assert episodes


@pytest.mark.parametrize(
    ("name", "mode"), [(WANDERING, "sync"), ("tests.environments:Wandering/SameStep-v0", "native")]
)
@pytest.mark.parametrize("field", ["absent", "nested/absent", "nested", "nested/pair", "kind", "kind/of"])
def test_an_info_that_is_not_given_as_asked_for_is_named(name: str, mode: Any, field: str) -> None:
    environment = make_vector(name, COUNT, {"terminate": 0.0, "truncate": 0.0}, mode)
    environment.record([FieldSpec(field, (), "float32")])
    environment.reset(3)
    with pytest.raises(EnvironmentFailed, match=f"field '{field}'"):
        environment.step(np.zeros(COUNT, np.int64))


@pytest.mark.parametrize("mode", ["sync", "native"])
def test_the_same_seed_gives_the_same_episodes_and_another_seed_others(mode: Any) -> None:
    def rewards(seed: int) -> list[float]:
        environment = make_vector("tests.environments:Wandering/NextStep-v0", COUNT, {}, mode)
        environment.reset(seed)
        return [float(value) for _ in range(20) for value in environment.step(np.zeros(COUNT, np.int64)).reward]

    assert rewards(1) == rewards(1)
    assert rewards(1) != rewards(2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("step", "step 1 of copy 0 of 2 failed with OSError: the simulator is gone"),
        ("reset", "reset of copy 0 of 2 failed with OSError: the simulator is gone"),
        ("reward", "step 1 of copy 0 of 2 returned the text 'much' as the reward, expected one number"),
        ("no reward", "step 1 of copy 0 of 2 returned None as the reward, expected one number"),
        ("shape", r"reset of copy 0 of 2 returned as the observation an array of shape \[2\], expected \[1\]"),
    ],
)
def test_what_an_environment_does_wrong_is_reported_with_its_name(fault: str, message: str) -> None:
    environment = make_vector("tests.environments:make_faulty", 2, {"fault": fault})
    with pytest.raises(EnvironmentFailed, match=f"'tests.environments:make_faulty': .*{message}"):
        environment.reset(0)
        environment.step(np.zeros(2, np.int64))


def test_native_cartpole_is_stepped_natively_and_truncates_at_its_limit() -> None:
    environment = make_vector("CartPole-v1", 4, {"max_episode_steps": 5})
    assert environment.native
    environment.reset(0)
    steps = [environment.step(np.array([0, 1, 0, 1])) for _ in range(5)]
    assert environment.idle.all()
    steps.append(environment.step(np.array([0, 1, 0, 1])))
    assert steps[4].truncated.all()
    assert not steps[5].valid.any()
    assert not steps[5].truncated.any()
    np.testing.assert_array_equal(steps[5].reward, 0.0)


def test_what_a_step_that_only_reset_a_copy_reports_is_not_a_transition() -> None:
    class Careless(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            resetting = self._autoreset_envs.copy()
            observation, reward, terminated, truncated, infos = super().step(actions)
            return observation, reward + 9 * resetting, terminated | resetting, truncated | resetting, infos

    environment = NativeEnvironment("careless", Careless([lambda: Counting((2,))]))
    environment.reset(0)
    steps = [environment.step(np.zeros(1, np.int64)) for _ in range(6)]
    assert [bool(step.valid[0]) for step in steps] == [True, True, False] * 2
    assert [float(step.reward[0]) for step in steps] == [1.0, 2.0, 0.0] * 2
    assert [bool(step.terminated[0]) for step in steps] == [False, True, False] * 2
    assert not any(step.truncated[0] for step in steps)
