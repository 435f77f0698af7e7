"""Every space that is supported trains, evaluates and resumes; every other one is refused by its name, with a cure."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import anyio
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from orchestrator import (
    CheckpointsConfig,
    EvaluationConfig,
    Hook,
    LearningConfig,
    PolicyConfig,
    Trainer,
)
from orchestrator.environments import InvalidEnvironment
from tests.orchestrator.training import WaitForCheckpoints, small_config

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator import TrainerConfig
    from state import TrainerState

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.test_spaces"
BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (6, 6, 3), np.uint8)

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": BOX,
    "box of float64": spaces.Box(np.array([0.1, -0.3]), np.array([0.2, 0.7]), dtype=np.float64),
    "box with one bound": spaces.Box(np.array([0.0, -np.inf]), np.array([np.inf, 1.0]), dtype=np.float64),
    "box without bounds": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    "box of booleans": spaces.Box(0, 1, (4,), np.bool_),
    "box of integers": spaces.Box(-3, 3, (2,), np.int16),
    "box of no numbers": spaces.Box(-1.0, 1.0, (0,), np.float32),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "image": IMAGE,
    "discrete": spaces.Discrete(4),
    "discrete from 3": spaces.Discrete(4, start=3),
    "discrete from -2": spaces.Discrete(4, start=-2),
    "multidiscrete": spaces.MultiDiscrete([3, 2], start=[1, -4]),
    "multidiscrete with two axes": spaces.MultiDiscrete([[3, 2], [2, 5]]),
    "multibinary": spaces.MultiBinary(4),
    "multibinary with two axes": spaces.MultiBinary((2, 3)),
    "dict": spaces.Dict({"x": BOX, "kind": spaces.Discrete(3, start=1), "none": spaces.Box(-1.0, 1.0, (2, 0))}),
    "dict with keys of other types": spaces.Dict({0: BOX, ("a", 1): spaces.Discrete(2)}),  # type: ignore[dict-item]
    "tuple": spaces.Tuple((spaces.Discrete(2, start=1), BOX)),
    "tuple of one": spaces.Tuple((BOX,)),
    "nested dict": spaces.Dict({"eyes": spaces.Dict({"left": IMAGE, "right": IMAGE}), "x": BOX}),
    "nested tuple": spaces.Tuple((spaces.Tuple((BOX, spaces.MultiBinary(2))), spaces.Discrete(3))),
    "dict of tuples": spaces.Dict({"hands": spaces.Tuple((BOX, spaces.Discrete(5))), "x.y": spaces.Dict({"z": BOX})}),
    "tuple of dicts": spaces.Tuple((spaces.Dict({"a": BOX}), spaces.Dict({"a": spaces.MultiDiscrete([2, 2])}))),
}

ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "discrete from 5": spaces.Discrete(3, start=5),
    "discrete from -7": spaces.Discrete(3, start=-7),
    "multidiscrete": spaces.MultiDiscrete([2, 4], start=[3, -1]),
    "multidiscrete with two axes": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 1], [2, 3]]),
    "multibinary": spaces.MultiBinary(3),
    "multibinary with two axes": spaces.MultiBinary((2, 2)),
    "box": spaces.Box(-1.0, 2.0, (2, 2), np.float32),
    "box of float64": spaces.Box(np.array([0.1, -0.3]), np.array([0.1000001, 0.7]), dtype=np.float64),
    "box of float16": spaces.Box(np.float16([-0.1, -5.0]), np.float16([0.3, 6e4]), dtype=np.float16),
    "box with one bound": spaces.Box(np.array([0.1, -np.inf]), np.array([np.inf, 0.1]), dtype=np.float64),
    "box without bounds": spaces.Box(-np.inf, np.inf, (2,), np.float64),
    "box with both and none": spaces.Box(
        np.float32([[-0.5, -np.inf], [-np.inf, 0.1]]), np.float32([[0.5, np.inf], [-0.1, np.inf]]), dtype=np.float32
    ),
    "box of all floats": spaces.Box(np.finfo(np.float64).min, np.finfo(np.float64).max, (2,), np.float64),
    "box of integers": spaces.Box(np.array([-3, 0]), np.array([5, 1]), dtype=np.int16),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
}

UNSUPPORTED: dict[str, spaces.Space[Any]] = {
    "Text": spaces.Text(5),
    "Graph": spaces.Graph(BOX, None),
    "Sequence": spaces.Sequence(BOX),
    "OneOf": spaces.OneOf((BOX, spaces.Discrete(2))),
}


class Sampling(gymnasium.Env[Any, Any]):
    """Observes what its space samples; rewards depend on the actions, which must be of the space. Ends in both ways."""

    def __init__(self, observation: str = "box", action: str = "discrete") -> None:
        # Of its own: other copies, some in other threads, sample from theirs.
        self.observation_space = copy.deepcopy(OBSERVATIONS[observation])
        self.action_space = ACTIONS[action]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(3, 9))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self._left -= 1
        reward = float(np.tanh(np.asarray(action, np.float64)).sum())
        cut = bool(self.np_random.integers(2))
        return self._observe(), reward, self._left == 0 and not cut, self._left == 0 and cut, {}

    def _observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()


def make_sampling(**options: Any) -> Sampling:
    return Sampling(**options)


def _copies(mode: AutoresetMode) -> Any:
    def make(num_envs: int, **options: Any) -> SyncVectorEnv:
        return SyncVectorEnv([lambda: Sampling(**options)] * num_envs, autoreset_mode=mode)

    return make


for _mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
    gymnasium.register(f"Sampling/{_mode.value}-v0", make_sampling, vector_entry_point=_copies(_mode))


class Scores(Hook):
    def __init__(self) -> None:
        self.score: float | None = None

    async def on_training_end(self, state: TrainerState) -> None:
        if state.eval_scores is not None:
            self.score = state.eval_scores.avg_simulation_score


def config_with(folder: Path | None, environment: str, **settings: Any) -> TrainerConfig:
    options = {name: settings.pop(name) for name in ("observation", "action") if name in settings}
    return small_config(
        epochs=4,
        horizon=16,
        environment=environment,
        environment_options=options,
        run_dir=folder,
        learning=LearningConfig(update_epochs=1, minibatches=2),
        checkpoints=CheckpointsConfig(every=2, keep=0),
        evaluation=EvaluationConfig(every=2, episodes=2, num_environments=2),
        **settings,
    )


def trains_evaluates_and_resumes(folder: Path, **settings: Any) -> TrainerState:
    """One run in one piece, and one that resumes in the middle, which must have the same bits."""
    config = config_with(folder / "whole", f"{HERE}:make_sampling", **settings)
    scores = Scores()
    whole = anyio.run(Trainer(config, hooks=[scores, WaitForCheckpoints(config)]).run)
    assert scores.score is not None
    branch = replace(config, run_dir=folder / "branch")
    resumed = anyio.run(Trainer(branch, resume=folder / "whole" / "checkpoints" / "00000002").run)
    assert whole.policy is not None
    assert resumed.policy is not None
    assert whole.epoch == resumed.epoch == 4
    for name, array in whole.policy.tensors.items():
        assert np.array_equal(array, resumed.policy.tensors[name]), name
        assert np.isfinite(array).all(), name
    return whole


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_supported_observation_trains_evaluates_and_resumes(
    observation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trains_evaluates_and_resumes(tmp_path, observation=observation)
    assert "resumed, but" not in caplog.text


@pytest.mark.parametrize("action", ACTIONS)
def test_every_supported_action_is_in_its_space_in_training_and_evaluation(action: str, tmp_path: Path) -> None:
    trains_evaluates_and_resumes(tmp_path, action=action)


@pytest.mark.parametrize("action", [name for name in ACTIONS if name.startswith("box") or name == "scalar"])
def test_squashed_actions_are_in_their_space_in_training_and_evaluation(action: str, tmp_path: Path) -> None:
    trains_evaluates_and_resumes(tmp_path, action=action, policy=PolicyConfig(hidden_sizes=(8,), box_actions="squash"))


@pytest.mark.parametrize("observation", ["tuple", "nested dict", "dict of tuples", "tuple of dicts"])
@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_networks_with_and_without_memory_take_what_is_nested_normalized_too(
    observation: str, network: str, tmp_path: Path
) -> None:
    policy = PolicyConfig(network=network, hidden_sizes=(8,), lstm_size=4, normalize_observations=True)
    trains_evaluates_and_resumes(tmp_path, observation=observation, policy=policy)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("observation", [name for name in OBSERVATIONS if "dict" in name or "tuple" in name])
def test_native_vectors_give_the_same_spaces(observation: str, mode: str) -> None:
    config = config_with(None, f"{HERE}:Sampling/{mode}-v0", observation=observation, action="multibinary")
    scores = Scores()
    anyio.run(Trainer(replace(config, checkpoints=CheckpointsConfig(enabled=False)), hooks=[scores]).run)
    assert scores.score is not None


def test_what_is_nested_is_a_field_of_the_experience_by_its_path() -> None:
    class Look(Hook):
        fields: tuple[str, ...] = ()

        async def on_rollout_end(self, state: TrainerState) -> None:
            assert state.experience is not None
            self.fields = tuple(name for name in state.experience if name.startswith("observation"))

    look = Look()
    config = config_with(None, f"{HERE}:make_sampling", observation="dict of tuples", staleness=0)
    anyio.run(Trainer(replace(config, checkpoints=CheckpointsConfig(enabled=False)), hooks=[look]).run)
    assert sorted(look.fields) == ["observation/hands/0", "observation/hands/1", "observation/x.y/z"]


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_a_tuple_gives_the_same_bits_in_processes(backend: Literal["inline", "process"]) -> None:
    def weights(where: Literal["inline", "process"]) -> Any:
        config = config_with(None, f"{HERE}:make_sampling", observation="nested tuple", action="multibinary")
        config = replace(
            config,
            collection=replace(config.collection, backend=where),
            checkpoints=CheckpointsConfig(enabled=False),
            evaluation=EvaluationConfig(),
        )
        state = anyio.run(Trainer(config).run)
        assert state.policy is not None
        return {name: array.copy() for name, array in state.policy.tensors.items()}

    first, second = weights("inline"), weights(backend)
    assert all(np.array_equal(first[name], second[name]) for name in first)


class Odd(Sampling):
    def __init__(self, observed: str = "", acted: str = "", inside: bool = False) -> None:
        super().__init__()
        if observed:
            self.observation_space = UNSUPPORTED[observed]
            if inside:
                self.observation_space = spaces.Dict({"a": spaces.Tuple((BOX, UNSUPPORTED[observed]))})
        if acted:
            others = {"Dict": spaces.Dict({"a": spaces.Discrete(2)}), "Tuple": spaces.Tuple((spaces.Discrete(2),))}
            self.action_space = (UNSUPPORTED | others)[acted]


def make_odd(**options: Any) -> Odd:
    return Odd(**options)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_observation_that_is_not_supported_is_refused_by_name_with_a_cure(name: str, inside: bool) -> None:
    config = small_config(environment=f"{HERE}:make_odd", environment_options={"observed": name, "inside": inside})
    with pytest.raises(InvalidEnvironment, match=f"{name} is not supported.*: ") as raised:
        anyio.run(Trainer(config).run)
    assert f"{HERE}:make_odd" in str(raised.value)
    assert ("of key 'a/1'" in str(raised.value)) == inside


@pytest.mark.parametrize("name", [*UNSUPPORTED, "Dict", "Tuple"])
def test_an_action_that_is_not_supported_is_refused_by_name_with_a_cure(name: str) -> None:
    config = small_config(environment=f"{HERE}:make_odd", environment_options={"acted": name})
    with pytest.raises(InvalidEnvironment, match=f"{name} is not supported.*: "):
        anyio.run(Trainer(config).run)


class Wrong(Sampling):
    def __init__(self, fault: str) -> None:
        super().__init__("dict of tuples")
        self._fault = fault

    def _observe(self) -> Any:
        right = super()._observe()
        match self._fault:
            case "no dict":
                return right["hands"]
            case "no tuple":
                return right | {"hands": 3}
            case "short tuple":
                return right | {"hands": right["hands"][:1]}
            case "no inner key":
                return right | {"x.y": {}}
            case "wrong shape":
                return right | {"hands": (right["hands"][0][:2], right["hands"][1])}
            case _:
                return right | {"hands": (right["hands"][0], 7)}


def make_wrong(fault: str) -> Wrong:
    return Wrong(fault)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("no dict", "a tuple as the observation, expected a dict"),
        ("no tuple", "a int as the observation of key 'hands', expected a tuple of 2"),
        ("short tuple", "a tuple of 1 as the observation of key 'hands', expected a tuple of 2"),
        ("no inner key", r"without the keys \['z'\] of key 'x.y'"),
        ("wrong shape", r"observation of key 'hands/0'.* shape \[2\], expected \[3\]"),
        ("out of range", "gave 7 in the observation of key 'hands/1' of copy 0"),
    ],
)
def test_what_is_not_as_a_nested_space_says_is_named_by_its_path(fault: str, expected: str) -> None:
    config = small_config(environment=f"{HERE}:make_wrong", environment_options={"fault": fault})
    with pytest.raises(Exception, match=expected):
        anyio.run(Trainer(config).run)


def test_keys_that_become_the_same_path_are_refused() -> None:
    OBSERVATIONS["clashing"] = spaces.Dict({"a/b": BOX, "a": spaces.Dict({"b": BOX})})
    try:
        config = small_config(environment=f"{HERE}:make_sampling", environment_options={"observation": "clashing"})
        with pytest.raises(InvalidEnvironment, match="different as texts"):
            anyio.run(Trainer(config).run)
    finally:
        del OBSERVATIONS["clashing"]


def test_squashing_reaches_the_whole_box_and_keeps_the_order() -> None:
    from orchestrator.environments.spaces import ActionConverter

    space = spaces.Box(np.array([-1.0, 2.0, -np.inf, -np.inf]), np.array([3.0, np.inf, -2.0, np.inf]), dtype=np.float64)
    numbers = np.linspace(-40, 40, 81, dtype=np.float32)
    actions = ActionConverter(space, squash=True)(np.repeat(numbers[:, None], 4, 1))
    assert (np.diff(actions, axis=0) >= 0).all()
    assert all(space.contains(action) for action in actions)
    assert actions[0].tolist() == pytest.approx([-1.0, 2.0, -42.0, -40.0])
    assert actions[40].tolist() == pytest.approx([1.0, 2.0 + np.log(2), -2.0 - np.log(2), 0.0])
    assert actions[-1].tolist() == pytest.approx([3.0, 42.0, -2.0, 40.0])
    whole = ActionConverter(spaces.Box(-3, 5, (1,), np.int16), squash=True)(numbers[:, None])
    assert {-3, 5} <= set(whole[:, 0].tolist()) <= set(range(-3, 6))


def test_squashing_changes_what_the_environment_gets_and_not_what_is_recorded() -> None:
    def trained(box_actions: Literal["clip", "squash"]) -> Any:
        policy = PolicyConfig(hidden_sizes=(8,), box_actions=box_actions)
        config = config_with(None, f"{HERE}:make_sampling", action="box", policy=policy, staleness=0)
        config = replace(config, checkpoints=CheckpointsConfig(enabled=False), evaluation=EvaluationConfig())
        seen: list[Any] = []

        class Look(Hook):
            overflow = "block"

            async def on_rollout_end(self, state: TrainerState) -> None:
                assert state.experience is not None
                seen.append((state.experience["action"].copy(), state.experience["reward"].copy()))

        anyio.run(Trainer(config, hooks=[Look()]).run)
        return seen[0]

    (clipped, rewards), (squashed, others) = trained("clip"), trained("squash")
    assert np.array_equal(clipped[:, 0], squashed[:, 0])
    assert not np.array_equal(rewards[:, 0], others[:, 0])
    assert PolicyConfig().box_actions == "clip"
