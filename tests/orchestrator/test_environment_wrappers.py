"""Wrappers and time limits that settings name are around every environment, in training and evaluation alike."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from orchestrator import (
    CheckpointsConfig,
    ConfigurationError,
    EvaluationConfig,
    EvaluationTask,
    Hook,
    LossesConfig,
    Trainer,
    evaluate_checkpoint,
)
from orchestrator.__main__ import main
from orchestrator.config.file import from_table
from orchestrator.environments import InvalidEnvironment, make_vector
from orchestrator.environments.adaptation import Adaptation
from orchestrator.environments.make import make_single
from tests.orchestrator.training import WaitForCheckpoints, small_config

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator import TrainerConfig
    from state import TrainerState

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.test_environment_wrappers"


class Endless(gymnasium.Env[Any, Any]):
    """Episodes without an end, in which each step gives 1."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1.0, 1.0, (2, 2), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observe(), 1.0, False, False, {}

    def render(self) -> Any:
        return np.zeros((4, 4, 3), np.uint8)

    def _observe(self) -> Any:
        return self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)


def endless(**options: Any) -> Endless:
    return Endless(**options)


class Tenfold(gymnasium.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return 10 * float(reward)


class PlusOne(gymnasium.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return float(reward) + 1


class Drifting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Has a state of its own, and draws: it must be saved with the environment's."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._drift = 0.0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        self._drift = 0.9 * self._drift + 0.1 * float(self.np_random.normal())
        return (observation + self._drift).astype(np.float32), reward, terminated, truncated, info


class SeesEnds(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Says in the info of an episode's last step how it ended."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, info | {"cut": float(truncated)}


class Repeating(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes each action three times, or until the episode ends."""

    def step(self, action: Any) -> Any:
        total = 0.0
        for _ in range(3):
            observation, reward, terminated, truncated, info = super().step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def limited_to_nine() -> Any:
    return gymnasium.wrappers.TimeLimit(Endless(), 9)


def returns_none(env: Any) -> None:
    assert env


def returns_class(env: Any) -> Any:
    assert env
    return Tenfold


def fails(env: Any) -> Any:
    raise LookupError(f"no way to wrap {type(env).__name__}")


def takes_two(env: Any, other: Any) -> Any:
    return env, other


class Look(Hook):
    overflow = "block"

    def __init__(self) -> None:
        self.stats: dict[str, list[float]] = {}
        self.scores: dict[str, float] = {}
        self.truncated = 0
        self.terminated = 0

    async def on_rollout_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        assert state.rollout_stats is not None
        self.truncated += int(state.experience["truncated"].sum())
        self.terminated += int(state.experience["terminated"].sum())
        for name, values in state.rollout_stats.items():
            self.stats.setdefault(name, []).extend(values)

    async def on_training_end(self, state: TrainerState) -> None:
        if state.eval_scores is not None:
            self.scores = {name: score for (_, name), score in state.eval_scores.simulation_scores.items()}


def in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def config_with(environment: str = f"{HERE}:endless", folder: Path | None = None, **settings: Any) -> TrainerConfig:
    return small_config(
        epochs=settings.pop("epochs", 4),
        environment=environment,
        run_dir=folder,
        checkpoints=CheckpointsConfig(enabled=folder is not None, every=2, keep=0),
        evaluation=settings.pop("evaluation", EvaluationConfig(every=2, episodes=2)),
        **settings,
    )


def trained(config: TrainerConfig) -> Look:
    look = Look()
    anyio.run(Trainer(config, hooks=[look]).run)
    return look


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_wrappers_and_time_limits_are_in_training_and_evaluation_in_their_order(backend: str) -> None:
    for wrappers, reward in ((("Tenfold", "PlusOne"), 11.0), (("PlusOne", "Tenfold"), 20.0)):
        config = config_with(
            environment_wrappers=tuple(f"{HERE}:{name}" for name in wrappers), max_episode_steps=7, backend=backend
        )
        look = trained(config)
        assert set(look.stats["episode_return"]) == {7 * reward}
        assert set(look.stats["episode_length"]) == {7.0}
        assert look.truncated > 0
        assert look.terminated == 0
        assert set(look.scores.values()) == {7 * reward}


def test_wrappers_change_what_is_observed_and_gymnasiums_own_can_be_named() -> None:
    config = config_with(environment_wrappers=("gymnasium.wrappers:FlattenObservation",), max_episode_steps=5)
    assert trained(config).scores
    vector = make_vector(config.environment, 2, adaptation=Adaptation.of(config))
    assert vector.observation_space.shape == (4,)


def test_a_time_limit_takes_the_place_of_the_one_that_an_environment_is_registered_with() -> None:
    pendulum = config_with("Pendulum-v1", max_episode_steps=9)
    assert set(trained(pendulum).stats["episode_length"]) == {9.0}
    longer = config_with("Pendulum-v1", max_episode_steps=250, horizon=260, epochs=1, num_environments=1)
    assert set(trained(longer).stats["episode_length"]) == {250.0}


@pytest.mark.parametrize("mode", ["auto", "native", "sync"])
def test_native_vectors_have_the_time_limit_too(mode: Any) -> None:
    config = config_with("CartPole-v1", max_episode_steps=5, epochs=2)
    config = replace(config, collection=replace(config.collection, mode=mode))
    look = trained(config)
    assert set(look.stats["episode_length"]) == {5.0}
    assert set(look.scores.values()) == {5.0}
    vector = make_vector("CartPole-v1", 2, mode=mode, adaptation=Adaptation.of(config))
    assert vector.native == (mode != "sync")


def _copies(num_envs: int, **options: Any) -> SyncVectorEnv:
    assert set(options) <= {"max_episode_steps"}  # which it takes, and does not heed
    return SyncVectorEnv([endless] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


gymnasium.register("Endless/Unlimited-v0", endless, vector_entry_point=_copies)


def test_a_native_vector_that_is_not_known_to_heed_a_limit_or_to_be_wrapped_steps_single_environments() -> None:
    name = f"{HERE}:Endless/Unlimited-v0"
    assert make_vector(name, 2).native
    assert set(trained(config_with(name, max_episode_steps=6)).stats["episode_length"]) == {6.0}
    assert not make_vector(name, 2, adaptation=Adaptation(max_episode_steps=6)).native
    assert not make_vector("CartPole-v1", 2, adaptation=Adaptation(wrappers=(f"{HERE}:Tenfold",))).native
    with pytest.raises(InvalidEnvironment, match="cannot have max_episode_steps; expected the mode 'sync' or 'auto'"):
        make_vector(name, 2, mode="native", adaptation=Adaptation(max_episode_steps=6))
    with pytest.raises(InvalidEnvironment, match="cannot have environment_wrappers"):
        make_vector("CartPole-v1", 2, mode="native", adaptation=Adaptation(wrappers=(f"{HERE}:Tenfold",)))


def test_wrappers_see_how_episodes_end() -> None:
    config = config_with(environment_wrappers=(f"{HERE}:SeesEnds",), max_episode_steps=4)
    assert set(trained(config).stats["cut"]) == {1.0}


def test_the_limit_is_of_the_environments_own_steps_where_a_wrapper_repeats_actions() -> None:
    look = trained(config_with(environment_wrappers=(f"{HERE}:Repeating",), max_episode_steps=7))
    assert set(look.stats["episode_length"]) == {3.0}
    assert set(look.stats["episode_return"]) == {7.0}


@pytest.mark.parametrize(("limit", "length"), [(4, 4.0), (20, 9.0), (None, 9.0)])
def test_the_limit_of_an_environment_that_a_function_makes_is_added_to_its_own(
    limit: int | None, length: float
) -> None:
    look = trained(config_with(f"{HERE}:limited_to_nine", max_episode_steps=limit))
    assert set(look.stats["episode_length"]) == {length}


def test_a_wrapped_run_is_resumed_exactly_and_its_settings_go_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_with(
        folder=tmp_path / "whole",
        environment_wrappers=(f"{HERE}:Drifting", f"{HERE}:Tenfold"),
        max_episode_steps=11,
    )
    whole = anyio.run(Trainer(config, hooks=[WaitForCheckpoints(config)]).run)
    saved = tmp_path / "whole" / "checkpoints" / "00000002"
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = anyio.run(Trainer(branch, resume=saved).run)
    assert whole.policy is not None
    assert resumed.policy is not None
    for name, array in whole.policy.tensors.items():
        assert np.array_equal(array, resumed.policy.tensors[name]), name
    assert "resumed, but" not in caplog.text

    report = evaluate_checkpoint(tmp_path / "whole", episodes=2)
    assert (report["return_mean"], report["length_mean"]) == (110.0, 11.0)
    assert Trainer(resume=tmp_path / "whole").config.environment_wrappers == config.environment_wrappers

    for changes, named, cure in (
        ({"environment_wrappers": ()}, "environment_wrappers = ()", "set it to ("),
        ({"environment_wrappers": config.environment_wrappers[::-1]}, "environment_wrappers", "set it to ("),
        ({"max_episode_steps": 12}, "max_episode_steps = 12", "set it to 11, as it was, or start a new run"),
        ({"init_from": saved}, "init_from", "leave it out"),
        ({"losses": LossesConfig(value_clip=0.2)}, "losses.value_clip = 0.2", "leave it out, as it was, or start"),
    ):
        with pytest.raises(ConfigurationError) as raised:
            anyio.run(Trainer(replace(branch, run_dir=tmp_path / "third", **changes), resume=saved).run)
        assert named in str(raised.value)
        assert "a resumed run keeps the settings of its checkpoint" in in_one_line(raised.value)
        assert cure in in_one_line(raised.value)

    file = tmp_path / "whole" / "config.toml"
    file.write_text(file.read_text().replace("max_episode_steps = 11", "max_episode_steps = 12"))
    with pytest.raises(ConfigurationError, match="max_episode_steps = 12.*\n.*11, with which the run began"):
        Trainer(resume=tmp_path / "whole")


def test_tasks_of_an_evaluation_are_wrapped_and_limited_as_the_training_is() -> None:
    tasks = (EvaluationTask(name="same"), EvaluationTask(name="other", environment=f"{HERE}:Endless"))
    config = config_with(
        environment_wrappers=(f"{HERE}:Tenfold",),
        max_episode_steps=3,
        evaluation=EvaluationConfig(every=2, episodes=2, tasks=tasks),
    )
    assert trained(config).scores == {"same": 30.0, "other": 30.0}


def test_what_is_rendered_for_a_video_is_wrapped_too() -> None:
    adaptation = Adaptation(wrappers=(f"{HERE}:Tenfold",), max_episode_steps=3)
    single = make_single(f"{HERE}:endless", {"render_mode": "rgb_array"}, adaptation)
    single.reset(seed=1)
    steps = [single.step(0) for _ in range(3)]
    assert [step[1] for step in steps] == [10.0] * 3
    assert steps[-1][3]
    assert single.render() is not None
    single.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tests.orchestrator.nowhere:Tenfold", "there is no module tests.orchestrator.nowhere"),
        (f"{HERE}:Tenfolt", "has no Tenfolt: .*Tenfold"),
        (f"{HERE}:HERE", "is not a function"),
        (f"{HERE}:takes_two", "is called with one argument, but missing a required argument"),
        ("functools:partial", "Python's standard library"),
        ("Tenfold", "expected: package.module:function"),
    ],
)
def test_a_name_that_names_no_wrapper_is_refused_before_anything_starts(name: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        anyio.run(Trainer(config_with(environment_wrappers=(name,))).run)
    assert re.search(f"environment_wrappers.*{expected}", in_one_line(raised.value))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("returns_none", "returned a NoneType, expected a gymnasium.Env; return the wrapped environment"),
        ("returns_class", "returned the class Tenfold, expected a gymnasium.Env; return an instance"),
        ("fails", "failed with LookupError: no way to wrap Endless"),
    ],
)
def test_a_wrapper_that_wraps_nothing_is_named_with_the_environment(name: str, expected: str) -> None:
    with pytest.raises(InvalidEnvironment, match=expected) as raised:
        anyio.run(Trainer(config_with(environment_wrappers=(f"{HERE}:{name}",))).run)
    assert f"environment '{HERE}:endless': its wrapper '{HERE}:{name}'" in str(raised.value)


def test_settings_that_contradict_each_other_are_refused() -> None:
    config = config_with("CartPole-v1", environment_wrappers=(f"{HERE}:Tenfold",), max_episode_steps=3)
    collection = replace(config.collection, mode="native", environment_options={"max_episode_steps": 9})
    with pytest.raises(ConfigurationError) as raised:
        anyio.run(Trainer(replace(config, collection=collection)).run)
    assert {problem.field for problem in raised.value.problems} == {"collection.mode", "max_episode_steps"}
    with pytest.raises(ConfigurationError, match="max_episode_steps = 0"):
        anyio.run(Trainer(replace(config, max_episode_steps=0)).run)


def test_wrappers_of_settings_that_are_not_the_users_are_not_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"environment_wrappers\[0\] = 'a.b:c'"):
        Trainer(from_table({"environment_wrappers": ["a.b:c"]}), trust_code=False)
    wrappers = (f"{HERE}:Tenfold",)
    config = config_with("CartPole-v1", tmp_path / "run", environment_wrappers=wrappers, max_episode_steps=3)
    anyio.run(Trainer(config).run)
    uri = (tmp_path / "run").as_uri()
    for refused in (lambda: Trainer(resume=uri), lambda: evaluate_checkpoint(uri, episodes=1)):
        with pytest.raises(ConfigurationError, match=r"environment_wrappers\[0\].*\n.*no code to run") as raised:
            refused()
        assert [problem.field for problem in raised.value.problems] == ["environment_wrappers[0]"]
    assert evaluate_checkpoint(uri, episodes=1, trust_code=True)["return_mean"] == 30.0


def test_the_command_takes_wrappers_and_a_time_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--environment-wrappers", f"{HERE}:Tenfold", f"{HERE}:PlusOne", "--max-episode-steps", "4"]
    sizes = ["--collection.num-environments", "2", "--collection.horizon", "16", "--total-agent-steps", "32"]
    more = ["--collection.backend", "inline", "--learning.minibatches", "1", "--metrics.progress", "off"]
    run = tmp_path / "run"
    assert main(["train", "--environment", f"{HERE}:endless", *words, *sizes, *more, "--run-dir", str(run)]) == 0
    assert main(["eval", str(run), "--episodes", "1"]) == 0
    assert "44" in capsys.readouterr().out
    recorded = tomllib.loads((run / "config.toml").read_text())
    assert recorded["environment_wrappers"] == [f"{HERE}:Tenfold", f"{HERE}:PlusOne"]
    assert recorded["max_episode_steps"] == 4
