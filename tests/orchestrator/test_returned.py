"""What environments return is what their spaces say: it is taken as it is, converted with one warning where that loses
nothing, or refused with an error that says where, what was expected and what to do."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor, nn

from losses import ppo_losses
from orchestrator import EvaluationConfig, EvaluationTask, Hook, PolicyConfig, Trainer
from orchestrator.command.evaluation import evaluate_checkpoint
from orchestrator.environments import EnvironmentFailed
from orchestrator.policies import Spaces
from state import TrainerState
from tests.orchestrator.careless import Asking
from tests.orchestrator.training import small_config

pytestmark = pytest.mark.slow

SPACES: dict[str, gymnasium.Space[Any]] = {
    "vector": spaces.Box(-1, 1, (4,), np.float32),
    "doubles": spaces.Box(-1, 1, (4,), np.float64),
    "frames": spaces.Box(-1, 1, (4, 4), np.float64),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "image": spaces.Box(0, 255, (4, 4), np.uint8),
    "bytes": spaces.Box(0, 255, (4,), np.uint8),
    "small": spaces.Box(-5, 5, (4,), np.int8),
    "words": spaces.Box(0, 2**64 - 1, (2,), np.uint64),
    "discrete": spaces.Discrete(4),
    "shifted": spaces.Discrete(4, start=-2),
    "multidiscrete": spaces.MultiDiscrete([3, 2]),
    "unsigned choices": spaces.MultiDiscrete([3, 2], dtype=np.uint64, start=[1, 5]),
    "far choices": spaces.MultiDiscrete([3, 2], dtype=np.uint64, start=np.array([2**63, 5], np.uint64)),
    "multibinary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)}),
    "numbered": spaces.Dict({0: spaces.Box(-1, 1, (2,), np.float32), 10: spaces.Discrete(3)}),
}
RIGHT: dict[str, Any] = {
    "vector": np.full(4, 0.5, np.float32),
    "doubles": np.full(4, 0.5),
    "frames": np.full((4, 4), 0.5),
    "scalar": np.float32(0.5),
    "image": np.full((4, 4), 7, np.uint8),
    "bytes": np.full(4, 7, np.uint8),
    "small": np.full(4, 3, np.int8),
    "words": np.full(2, 2**63 - 1, np.uint64),
    "discrete": 3,
    "shifted": np.int64(1),
    "multidiscrete": np.array([2, 1]),
    "unsigned choices": np.array([2, 6], np.uint64),
    "far choices": np.array([2**63 + 1, 6], np.uint64),
    "multibinary": np.array([1, 0, 1], np.int8),
    "dict": {"a": np.full(2, 0.5, np.float32), "b": 2},
    "numbered": {0: np.full(2, 0.5, np.float32), 10: 2},
}
ENVIRONMENT = "tests.orchestrator.test_returned:make"


class Returning(gymnasium.Env[Any, Any]):
    """Right until the fifth step of the second episode; then in one way wrong, here or in the reset after it."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: str, wrong: Any = None, where: str = "observation") -> None:
        self.observation_space = SPACES[space]
        self._right, self._wrong, self._where = RIGHT[space], wrong or (lambda right: right), where
        self._episode = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._episode, self._steps = self._episode + 1, 0
        if self._episode == 3 and self._where == "reset":
            return self._wrong(self._right)
        if self._episode == 3 and self._where == "first observation":
            return self._wrong(self._right), {}
        return self._right, {}

    def step(self, action: Any) -> Any:
        self._steps += 1
        parts: dict[str, Any] = {
            "observation": self._right,
            "reward": 1.0,
            "terminated": self._steps == 8,
            "truncated": False,
            "info": {},
        }
        if self._episode == 2 and self._steps >= 5:
            if self._where == "result":
                return self._wrong(tuple(parts.values()))
            if self._where in parts:
                parts[self._where] = self._wrong(parts[self._where])
        return tuple(parts.values())


BEYOND = r"which is finite, but beyond what float32 can hold .3.4e.38., which agents learn from; scale it, or clip it"
WRONG: dict[str, tuple[str, str, Any, str]] = {
    "a number for an array": ("vector", "observation", lambda _: np.float32(0.5), r"shape \[\], expected \[4\]"),
    "an array that broadcasts": ("vector", "observation", lambda right: right[:1], r"shape \[1\], expected \[4\]"),
    "a row": ("vector", "observation", lambda right: right[None], r"shape \[1, 4\], expected \[4\]"),
    "a short array": ("vector", "observation", lambda right: right[:3], r"shape \[3\], expected \[4\]"),
    "an image that broadcasts": ("image", "observation", lambda right: right[:1], r"shape \[1, 4\], expected \[4, 4\]"),
    "text": ("vector", "observation", lambda _: ["0.5"] * 4, "a list of str, expected float32"),
    "None": ("vector", "observation", lambda _: None, "None, expected float32"),
    "a ragged list": ("vector", "observation", lambda _: [[1], [1, 2]], "a list of list, expected float32"),
    "floats for bytes": ("bytes", "observation", lambda right: right / 255, "float64 where uint8 is expected"),
    "a float image": ("image", "observation", lambda right: np.float32(right), "float32 where uint8 is expected"),
    "too large numbers": ("bytes", "observation", lambda _: np.full(4, 256), "the number 256 .* uint8 .*: 0 to 255"),
    "negative numbers": ("bytes", "observation", lambda _: [0, 1, 2, -1], "the number -1 .* uint8 .*: 0 to 255"),
    "numbers that wrap": ("small", "observation", lambda _: np.full(4, 300), "the number 300 .* int8 .*: -128 to 127"),
    "numbers beyond 63 bits": (
        "words",
        "observation",
        lambda _: np.full(2, 2**63, np.uint64),
        "the number 92233720368.*agents get uint64 as int64.*return smaller numbers, or floats",
    ),
    "no choice": ("discrete", "observation", lambda _: 4, "gave 4 in the observation of copy 0.*expected 0 to 3"),
    "no shifted choice": ("shifted", "observation", lambda _: 2, "gave 2 in the observation.*expected -2 to 1"),
    "half a choice": ("discrete", "observation", lambda _: 1.0, "float64 where int64 is expected"),
    "a choice in an array": ("discrete", "observation", lambda _: np.array([1]), r"shape \[1\], expected \[\]"),
    "no choices": ("multidiscrete", "observation", lambda _: np.array([2, 2]), "gave 2 in the .*expected 0 to 1"),
    "no unsigned choices": ("unsigned choices", "observation", lambda _: np.array([1, 4]), "gave 4 .*expected 5 to 6"),
    "no far choices": (
        "far choices",
        "observation",
        lambda _: np.array([2**63 + 3, 5], np.uint64),
        f"gave {2**63 + 3} .*expected {2**63} to {2**63 + 2}",
    ),
    "masked numbers": (
        "vector",
        "observation",
        lambda right: np.ma.masked_array(right, [True, False, False, False]),
        r"an array of shape \[4\] with masked numbers .fill them",
    ),
    "a masked reward": ("vector", "reward", lambda _: np.ma.masked, "masked numbers .fill them.*as the reward"),
    "no bits": ("multibinary", "observation", lambda right: right * 2, "gave 2 in the .*expected 0 to 1"),
    "a dict for an array": ("vector", "observation", lambda right: {"a": right}, "a dict, expected float32"),
    "an array for a dict": (
        "dict",
        "observation",
        lambda right: right["a"],
        "an? ndarray as the observation, expected a",
    ),
    "a key less": ("dict", "observation", lambda right: {"a": right["a"]}, r"without the keys \['b'\]"),
    "a wrong part": ("dict", "observation", lambda right: {**right, "a": [[1, 1]]}, r"of key 'a' .*shape \[1, 2\]"),
    "a numbered part": ("numbered", "observation", lambda right: {**right, 10: None}, "of key 10 None, expected int64"),
    "reward None": ("vector", "reward", lambda _: None, "None as the reward, expected one number"),
    "reward of two": ("vector", "reward", lambda _: np.ones(2), r"float64 of shape \[2\] as the reward"),
    "reward in text": ("vector", "reward", lambda _: "1", "the text '1' as the reward"),
    "reward beyond floats": ("vector", "reward", lambda _: -(10**400), "an integer of 1329 bits as the reward"),
    "reward NaN": ("vector", "reward", lambda _: np.nan, "gave nan in the reward of copy 0, step 12.*expected finite"),
    "reward inf": ("vector", "reward", lambda _: np.inf, "gave inf in the reward of copy 0, step 12.*expected finite"),
    "a large reward": ("vector", "reward", lambda _: -1e300, f"as the reward the number -1e.300, {BEYOND}"),
    "a large integer reward": ("vector", "reward", lambda _: 10**40, f"as the reward the number 1e.40, {BEYOND}"),
    "a large reward of numpy": ("vector", "reward", lambda _: np.float64(4e38), f"the number 4e.38, {BEYOND}"),
    "a reward in an array": ("vector", "reward", lambda _: np.array([1e39]), f"the number 1e.39, {BEYOND}"),
    "a very large reward": ("vector", "reward", lambda _: np.longdouble("1e4000"), f"the number 1e.4000, {BEYOND}"),
    "large numbers": (
        "vector",
        "observation",
        lambda _: np.full(4, -1e300),
        f"observation the number -1e.300, {BEYOND}",
    ),
    "large doubles": ("doubles", "observation", lambda right: right * 1e300, f"the number 5e.299, {BEYOND}"),
    "large numbers in a list": ("vector", "observation", lambda _: [0, 1e39, 0, 0], f"the number 1e.39, {BEYOND}"),
    "a large number in a part": (
        "dict",
        "observation",
        lambda right: {**right, "a": np.array([np.inf, 1e39])},
        f"as the observation of key 'a' the number 1e.39, {BEYOND}",
    ),
    "large numbers in an image": ("frames", "observation", lambda right: right * 1e39, f"the number 5e.38, {BEYOND}"),
    "a large scalar": ("scalar", "observation", lambda _: np.float64(1e39), f"the number 1e.39, {BEYOND}"),
    "a large first observation": (
        "vector",
        "first observation",
        lambda _: np.full(4, 1e300),
        f"reset of copy 0 of 2 after step 16 returned as the observation the number 1e.300, {BEYOND}",
    ),
    "terminated None": ("vector", "terminated", lambda _: None, "None as terminated, expected True or False"),
    "terminated in two": ("vector", "terminated", lambda _: np.zeros(2, bool), r"bool of shape \[2\] as terminated"),
    "truncated half": ("vector", "truncated", lambda _: 0.5, "0.5 as truncated, expected True or False"),
    "truncated a dict": ("vector", "truncated", lambda _: {}, "a dict as truncated, expected True or False"),
    "info None": ("vector", "info", lambda _: None, "None as the info, expected a dict"),
    "info a list": ("vector", "info", lambda _: [], "a list as the info, expected a dict"),
    "four values": (
        "vector",
        "result",
        lambda parts: (*parts[:3], {}),
        "4 values, as old versions of Gym did.*of done",
    ),
    "three values": ("vector", "result", lambda parts: parts[:3], "3 values, expected 5: observation, reward"),
    "no tuple": ("vector", "result", lambda parts: parts[0], "a ndarray, expected a tuple: observation, reward"),
    "a wrong reset": (
        "vector",
        "first observation",
        lambda right: right[:1],
        r"reset of copy 0.*\[1\], expected \[4\]",
    ),
    "an old reset": (
        "vector",
        "reset",
        lambda right: right,
        "reset of copy 0.*a ndarray, expected 2: observation, info",
    ),
    "an old reset of two": ("words", "reset", lambda right: right, "a ndarray, expected 2: observation, info"),
    "a reset of five": ("vector", "reset", lambda right: (right, 0.0, False, False, {}), "5 values .*expected 2: obs"),
}
CONVERTED: dict[str, tuple[str, str, Any, str]] = {
    "a list": ("vector", "observation", lambda right: right.tolist(), "as a list of float64.*converted to float32"),
    "doubles": ("vector", "observation", np.float64, "as float64.*converted to float32"),
    "booleans": ("vector", "observation", lambda _: np.array([True] * 4), "as bool.*converted to float32"),
    "integers": ("vector", "observation", lambda _: np.ones(4, np.int64), "as int64.*converted to float32"),
    "integers for bytes": ("bytes", "observation", lambda _: np.full(4, 255), "as int64.*converted to uint8"),
    "a tensor": ("vector", "observation", torch.from_numpy, "as a Tensor of float32.*converted to float32"),
    "beyond the bounds": ("small", "observation", lambda _: np.full(4, 9, np.int8), "9, expected -5 to 5"),
    "a key more": (
        "dict",
        "observation",
        lambda right: {**right, "c": 1},
        r"with the keys \['c'\], which its space lacks",
    ),
    "a part in a list": ("dict", "observation", lambda right: {**right, "a": [0.5, 0.5]}, "of key 'a' as a list"),
    "reward of one": ("vector", "reward", lambda right: np.array([right]), r"rewards of shape \[1\]"),
    "terminated 0 or 1": ("vector", "terminated", int, "returns [01] as terminated"),
    "truncated in an array": (
        "vector",
        "truncated",
        lambda right: np.array([right]),
        r"bool of shape \[1\] as truncated",
    ),
}
USUAL: dict[str, tuple[str, str, Any]] = {
    "floats for doubles": ("doubles", "observation", np.float32),
    "an integer of numpy": ("discrete", "observation", np.int32),
    "an array without axes": ("discrete", "observation", np.array),
    "booleans for bits": ("multibinary", "observation", lambda right: right.astype(np.bool_)),
    "outside of float bounds": ("vector", "observation", lambda right: right * 9),
    "an integer reward": ("vector", "reward", int),
    "a float32 reward": ("vector", "reward", np.float32),
    "an array without masked numbers": ("vector", "observation", np.ma.masked_array),
    "numpy's flags": ("vector", "terminated", np.bool_),
}


def make(space: str, wrong: str = "", where: str = "observation") -> Returning:
    known = WRONG | CONVERTED | {name: (*case, "") for name, case in USUAL.items()}
    return Returning(space, known[wrong][2] if wrong else None, where)


class Look(Hook):
    def __init__(self) -> None:
        self.experience: list[dict[str, np.ndarray[Any, Any]]] = []
        self.stats: list[Any] = []

    async def on_rollout_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        self.stats.append(state.rollout_stats)
        self.experience.append({name: np.array(array) for name, array in state.experience.items()})


def train(options: dict[str, Any], environment: str = ENVIRONMENT, **settings: Any) -> tuple[Look, TrainerState]:
    look = Look()
    losses = settings.pop("losses", None)
    mode = settings.pop("mode", "sync")
    config = small_config(epochs=2, num_environments=2, horizon=20, environment=environment, **settings)
    collection = replace(config.collection, environment_options=options, mode=mode)
    return look, anyio.run(Trainer(replace(config, collection=collection), hooks=[look], losses=losses).run)


def warnings_about(text: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [message for message in messages if text in message]


@pytest.mark.parametrize("name", WRONG)
def test_what_an_environment_must_not_return_is_refused_where_it_happens(name: str) -> None:
    space, where, _, message = WRONG[name]
    with pytest.raises(EnvironmentFailed, match=message) as raised:
        train({"space": space, "wrong": name, "where": where})
    text = str(raised.value)
    assert f"environment '{ENVIRONMENT}'" in text
    assert "copy 0" in text
    assert "step 13 of copy 0 of 2 returned" in text or "step 1" in text


@pytest.mark.parametrize("name", CONVERTED)
def test_what_can_be_converted_is_and_there_is_one_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    space, where, wrong, message = CONVERTED[name]
    with caplog.at_level(logging.WARNING):
        look, _ = train(
            {"space": space, "wrong": name, "where": where}, evaluation=EvaluationConfig(every=1, episodes=3)
        )
    (warning,) = warnings_about(ENVIRONMENT, caplog)
    assert re.search(message, warning), warning
    if where == "observation" and space != "dict":
        np.testing.assert_array_equal(look.experience[0]["observation"][0, 13], np.asarray(wrong(RIGHT[space])))
    np.testing.assert_array_equal(look.experience[0]["terminated"][0].nonzero()[0], [7, 15])
    np.testing.assert_array_equal(look.experience[0]["reward"], 1.0)


@pytest.mark.parametrize("name", [*SPACES, *USUAL])
def test_what_the_space_says_or_everybody_returns_gives_no_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    options = {"space": name} if name in SPACES else dict(zip(("space", "where"), USUAL[name], strict=False))
    with caplog.at_level(logging.WARNING):
        train(options if name in SPACES else {**options, "wrong": name})
    scales = "of very large or different scales"  # so are those of some spaces, which is no matter of what is returned
    assert not [warning for warning in warnings_about("environment", caplog) if scales not in warning]


def test_a_warning_of_an_environment_comes_once_from_several_collectors_in_processes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        train({"space": "vector", "wrong": "doubles"}, collectors=2, backend="process")
    assert len(warnings_about("as float64", caplog)) == 1


def test_an_evaluation_that_an_environment_spoils_says_so_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    tasks = tuple(
        EvaluationTask(name=wrong, environment=f"tests.orchestrator.test_returned:make_{wrong}")
        for wrong in ("doubles", "doubtful")
    )
    with caplog.at_level(logging.WARNING):
        train(
            {"space": "vector"}, evaluation=EvaluationConfig(every=1, episodes=4, num_environments=2, tasks=tasks[:1])
        )
    assert len(warnings_about("make_doubles' returns", caplog)) == 1
    with caplog.at_level(logging.WARNING):
        train({"space": "vector"}, evaluation=EvaluationConfig(every=1, episodes=4, num_environments=2, tasks=tasks))
    assert "make_doubtful' gave nan in the observation of copy 0, step 5 of the evaluation" in caplog.text


def make_doubles() -> Returning:
    return Returning("vector", np.float64)


def make_doubtful() -> gymnasium.Env[Any, Any]:
    class Doubtful(Returning):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return observation * (np.nan if self._steps == 5 else 1.0), *rest

    return Doubtful("vector")


class Embedding(nn.Module):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.table = nn.Embedding(4, spaces.action_parameters + 1)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        output = self.table(observation)
        return output[:, :-1], output[:, -1]


def embedding(spaces: Spaces) -> nn.Module:
    return Embedding(spaces)


def test_a_network_that_fails_on_a_wrong_observation_is_not_blamed() -> None:
    policy = PolicyConfig(network="tests.orchestrator.test_returned:embedding")
    with pytest.raises(EnvironmentFailed, match="gave 4 in the observation of copy 0, step 13 of the rollout"):
        train({"space": "discrete", "wrong": "no choice"}, policy=policy)


class LargeHint(Asking):
    def __init__(self) -> None:
        super().__init__("hint", "float32")


class Hinting(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        *others, info = self.env.step(action)
        return (*others, {**info, "hint": 1e39})


def make_hinting() -> gymnasium.Env[Any, Any]:
    return Hinting(Returning("vector"))


def test_a_field_of_a_loss_beyond_float32_is_refused_with_its_value() -> None:
    message = f"step 1 of copy 0 of 2 returned as the experience field 'hint' the number 1e.39, {BEYOND}"
    with pytest.raises(EnvironmentFailed, match=message):
        train({}, "tests.orchestrator.test_returned:make_hinting", losses=(*ppo_losses(), LargeHint()))


@pytest.mark.parametrize(("dtype", "message"), [("int64", "float64 where int64"), ("int8", "float64 where int8")])
def test_a_field_of_a_loss_is_not_cut_off(dtype: str, message: str) -> None:
    with pytest.raises(EnvironmentFailed, match=f"field 'nested/reward' .*gave {message}"):
        train({}, "tests.environments:make_wandering", losses=(*ppo_losses(), Asking("nested/reward", dtype)))


VECTOR_WRONG: dict[str, tuple[str, Any, str]] = {
    "observation of one": ("observation", lambda right: right[:1], r"array of shape \[1, 4\], expected \[2, 4\]"),
    "observation without axis": ("observation", lambda right: right[0], r"array of shape \[4\], expected \[2, 4\]"),
    "reward of one": ("reward", lambda _: 1.0, r"rewards of shape \[\], expected \[2\]"),
    "reward None": ("reward", lambda _: [None, None], "a list of NoneType as rewards"),
    "large rewards": (
        "reward",
        lambda _: np.array([1.0, 1e300]),
        f"reward the number 1e.300, {BEYOND}",
    ),
    "large observations": (
        "observation",
        lambda right: right + np.array([[0.0], [-1e300]]),
        f"observation the number -1e.300, {BEYOND}",
    ),
    "terminated half": ("terminated", lambda _: np.full(2, 0.5), r"\[0.5, 0.5\] as terminated"),
    "truncated of three": ("truncated", lambda _: np.zeros(3, bool), r"truncated of shape \[3\], expected \[2\]"),
    "info": ("info", lambda _: [{}, {}], "a list of dict as the info, expected a dict"),
    "four values": ("result", lambda parts: parts[:4], "4 values, as old versions of Gym did"),
}
VECTOR_CONVERTED: dict[str, tuple[str, Any, str]] = {
    "doubles": ("observation", np.float64, "as float64"),
    "a column": ("reward", lambda right: right[:, None], r"rewards of shape \[2, 1\]"),
    "integers": ("terminated", np.int64, "terminated of int64"),
}


class ReturningVector(VectorEnv[Any, Any, Any]):
    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, wrong: str) -> None:
        self.num_envs, self._steps = num_envs, 0
        self.single_observation_space, self.single_action_space = SPACES["vector"], spaces.Discrete(2)
        self._where, self._wrong, _ = (VECTOR_WRONG | VECTOR_CONVERTED)[wrong]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros((self.num_envs, 4), np.float32), {}

    def step(self, actions: Any) -> Any:
        self._steps += 1
        no = np.zeros(self.num_envs, np.bool_)
        parts: dict[str, Any] = {
            "observation": np.zeros((self.num_envs, 4), np.float32),
            "reward": np.ones(self.num_envs),
            "terminated": no,
            "truncated": no,
            "info": {},
        }
        if self._steps >= 5 and self._where in parts:
            parts[self._where] = self._wrong(parts[self._where])
        values = tuple(parts.values())
        return self._wrong(values) if self._steps >= 5 and self._where == "result" else values


gymnasium.register(
    "Returning/Vector-v0",
    lambda wrong: Returning("vector"),  # pyright: ignore[reportUnknownLambdaType]
    vector_entry_point=lambda num_envs, wrong: ReturningVector(num_envs, wrong),  # pyright: ignore
)
VECTOR = "tests.orchestrator.test_returned:Returning/Vector-v0"


@pytest.mark.parametrize("name", VECTOR_WRONG)
def test_what_a_vector_environment_must_not_return_is_refused(name: str) -> None:
    with pytest.raises(
        EnvironmentFailed, match=f"'{VECTOR}': step 5 of (its 2 copies|copy 1 of 2) returned .*{VECTOR_WRONG[name][2]}"
    ):
        train({"wrong": name}, VECTOR, mode="native")


@pytest.mark.parametrize("name", VECTOR_CONVERTED)
def test_what_a_vector_environment_returns_is_converted_with_one_warning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        look, _ = train({"wrong": name}, VECTOR, mode="native")
    (warning,) = warnings_about(VECTOR, caplog)
    assert re.search(VECTOR_CONVERTED[name][2], warning), warning
    assert (look.experience[0]["reward"] == 1.0).all()


class Informing(VectorEnv[Any, Any, Any]):
    """Episodes of 3 steps, all at once, with infos and last observations in odd forms."""

    def __init__(self, num_envs: int, wrong: str, mode: str) -> None:
        self.num_envs, self._wrong = num_envs, wrong
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP if wrong == "metadata" else AutoresetMode(mode)}
        self._mode = AutoresetMode(mode)
        self.single_observation_space, self.single_action_space = SPACES["vector"], spaces.Discrete(2)
        self._observation, self._steps = np.zeros((num_envs, 4), np.float32), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._observation[:], self._steps = 0, 0
        return self._observation, {}

    def step(self, actions: Any) -> Any:
        resets = self._steps == 3
        self._steps = 0 if resets else self._steps + 1
        self._observation[:] = self._steps
        ends = np.full(self.num_envs, self._steps == 3)
        infos: dict[Any, Any] = {"score": np.arange(self.num_envs), "time": 0.5, 7: np.ones(self.num_envs)}
        if self._wrong == "a list":
            infos = {"final_info": [infos] * self.num_envs}
        elif self._wrong == "none":
            infos = {"final_info": None}
        elif self._mode is AutoresetMode.SAME_STEP:
            infos = {"final_info": infos}
        if ends.any() and self._mode is AutoresetMode.SAME_STEP:
            infos["final_obs"] = self._observation if self._wrong == "memory" else self._observation.copy()
            if self._wrong == "few":
                infos["final_obs"] = infos["final_obs"][:1]
            self._observation[:], self._steps = 0, 0
        return self._observation, np.ones(self.num_envs), ends, np.zeros(self.num_envs, np.bool_), infos


def informing(num_envs: int, wrong: str = "", mode: str = "SameStep") -> VectorEnv[Any, Any, Any]:
    return Informing(num_envs, wrong, mode)


INFORMING = "tests.orchestrator.test_returned:informing"


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_what_infos_of_a_vector_say_of_no_copy_is_left_out_with_a_warning(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        look, _ = train({"mode": mode}, INFORMING)
    (warning,) = warnings_about(INFORMING, caplog)
    assert "gives 0.5 as 'time' of the infos, expected an array with a value for each of its 2 copies" in warning
    assert look.stats[0]["score"][:2] == (0.0, 1.0)
    assert look.stats[0]["7"][:2] == (1.0, 1.0)
    assert "time" not in look.stats[0]


def test_a_vector_that_resets_earlier_than_it_says_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train({"wrong": "metadata"}, INFORMING)
    (warning,) = [text for text in warnings_about(INFORMING, caplog) if "resets in the next step" in text]
    assert "but gives 'final_obs'" in warning
    assert "correct metadata['autoreset_mode']" in warning


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("a list", r"a list of dict as 'final_info' of the infos, expected a dict of arrays"),
        ("few", r"float32 of shape \[1, 4\] as the final_obs of its infos, expected those of its 2 copies"),
        ("memory", r"a final_obs in the memory of its observations, where .* overwritten it; copy it"),
    ],
)
def test_what_a_vector_environment_must_not_say_of_an_end_is_refused(wrong: str, message: str) -> None:
    with pytest.raises(EnvironmentFailed, match=f"'{INFORMING}': step 3 of its 2 copies returned {message}"):
        train({"wrong": wrong}, INFORMING)


def test_what_a_vector_says_of_ends_is_read_in_the_same_way_with_a_limit_of_steps() -> None:
    for limit in (None, 7):
        look, _ = train({"wrong": "none"}, INFORMING, max_episode_steps=limit)
        assert set(look.stats[0]) == {"episode_return", "episode_length"}
    message = f"'{INFORMING}': step 3 of copy 0 of 2 returned a list of dict as 'final_info' of the infos, expected"
    with pytest.raises(EnvironmentFailed, match=message):
        train({"wrong": "a list"}, INFORMING, max_episode_steps=7)


def test_a_dict_space_with_numbers_as_keys_is_trained_saved_and_evaluated(tmp_path: Path) -> None:
    look, state = train({"space": "numbered"}, run_dir=tmp_path, evaluation=EvaluationConfig(every=1, episodes=2))
    experience = look.experience[0]
    np.testing.assert_array_equal(experience["observation/0"], np.full((2, 20, 2), 0.5, np.float32))
    np.testing.assert_array_equal(experience["observation/10"], np.full((2, 20), 2))
    assert state.eval_scores is not None
    assert state.eval_scores.avg_simulation_score == 8.0
    assert evaluate_checkpoint(tmp_path, episodes=2)["return_mean"] == 8.0


def test_keys_that_are_the_same_as_text_are_refused() -> None:
    class Twice(Returning):
        observation_space = spaces.Dict({1: spaces.Discrete(2), "1": spaces.Discrete(2)})

    from orchestrator.environments import InvalidEnvironment
    from orchestrator.environments.serial import SerialEnvironment

    environment = Returning("vector")
    environment.observation_space = Twice.observation_space
    with pytest.raises(InvalidEnvironment, match="expected keys that are different as texts"):
        SerialEnvironment("twice", [environment])


class Telling(Returning):
    """Gives infos that are its own affair, in gymnasium's vectors too."""

    def __init__(self, info: str) -> None:
        super().__init__("vector")
        self.info = info

    def step(self, action: Any) -> Any:
        *result, _ = super().step(action)
        around: dict[str, Any] = {"score": 1.0}
        if self.info == "names":
            of_ours = {"episode_return": -7.0, "episode_length": -7.0, "team_return": 1.0, "score": 1.0}
            of_ours |= {"recent_return": -7.0, "episodes": -7.0}
            return *result, {**of_ours, "episode_return/a": 1.0, "episode_length": {"b": 2.0}}
        if self.info == "itself":
            around["inner"] = {"around": around}
        return *result, around


def test_infos_with_names_of_our_own_statistics_are_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        look, _ = train({"info": "names"}, f"{__name__}:Telling", collectors=2)
    assert {name: look.stats[0][name] for name in look.stats[0]} == {
        "episode_return": (8.0,) * 4,
        "episode_length": (8.0,) * 4,
        "score": (1.0,) * 4,
    }
    (warning,) = warnings_about("infos", caplog)
    names = ["episode_length/b", "episode_return/a", "episodes", "recent_return", "team_return"]
    assert f"{names} in its infos, which are names of the run's" in warning


def test_an_info_that_contains_itself_is_refused_where_it_would_become_statistics() -> None:
    with pytest.raises(EnvironmentFailed, match=r"step 8 of copy 0 of 2 .* contains itself, as 'inner/around'"):
        train({"info": "itself"}, f"{__name__}:Telling")


def test_infos_of_a_vector_that_contain_themselves_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        look, _ = train({}, f"{__name__}:telling_vector", mode="auto")
    assert look.stats[0]["score"] == (1.0,) * 4
    (warning,) = warnings_about("infos", caplog)
    assert "gives infos that contain themselves, as 'around'" in warning


def telling_vector(num_envs: int) -> VectorEnv[Any, Any, Any]:
    class Around(gymnasium.vector.SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            *result, infos = super().step(actions)
            infos["inner"] = {"around": infos}
            return *result, infos

    return Around([lambda: Telling("")] * num_envs)
