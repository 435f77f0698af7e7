"""A function may return a vector environment, which steps all its copies itself: it trains as any other environment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from orchestrator import CheckpointsConfig, EvaluationConfig, Hook, Trainer, evaluate_checkpoint
from orchestrator.environments import InvalidEnvironment, make_vector
from orchestrator.environments.adaptation import Adaptation
from tests.environments import Counting
from tests.orchestrator.evaluation.test_evaluation import frames_of
from tests.orchestrator.training import WaitForCheckpoints, small_config
from tests.test_command import assert_family_ends, command, wait_for_epochs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator import TrainerConfig
    from state import TrainerState

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.test_returned_vectors"
MODES = {"next": AutoresetMode.NEXT_STEP, "same": AutoresetMode.SAME_STEP, "none": AutoresetMode.DISABLED}
KINDS = ("sync-next", "sync-same", "async-next", "async-same")


def carts(num_envs: int, kind: str = "sync-next", **options: Any) -> VectorEnv[Any, Any, Any]:
    """Carts in turn, or each in a process of its own."""
    form, _, mode = kind.partition("-")
    form = AsyncVectorEnv if form == "async" else SyncVectorEnv
    return form([lambda: gymnasium.make("CartPole-v1", **options)] * num_envs, autoreset_mode=MODES[mode])


def made_by_gymnasium(num_envs: int, max_episode_steps: int = 500) -> VectorEnv[Any, Any, Any]:
    return gymnasium.make_vec("CartPole-v1", num_envs=num_envs, max_episode_steps=max_episode_steps)


def of_any_options(**options: Any) -> VectorEnv[Any, Any, Any]:
    return gymnasium.make_vec("CartPole-v1", **options)


def always_three() -> VectorEnv[Any, Any, Any]:
    return carts(3)


def not_as_many(num_envs: int) -> VectorEnv[Any, Any, Any]:
    return carts(num_envs + 1)


def counts_in_floats(num_envs: int) -> VectorEnv[Any, Any, Any]:
    vector = carts(num_envs)
    vector.num_envs = float(num_envs)  # type: ignore[assignment]
    return vector


def counts_in_numpy(num_envs: int) -> VectorEnv[Any, Any, Any]:
    vector = carts(num_envs)
    vector.num_envs = np.int64(num_envs)  # type: ignore[assignment]
    return vector


def says_nothing(num_envs: int) -> VectorEnv[Any, Any, Any]:
    vector = carts(num_envs)
    vector.metadata = {}
    return vector


class Drawn(Counting):
    """Shows itself, for 9 steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__((9,))
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.full((32, 32, 3), 100, np.uint8)


def drawn(num_envs: int, kind: str, **options: Any) -> VectorEnv[Any, Any, Any]:
    form, _, mode = kind.partition("-")
    form = AsyncVectorEnv if form == "async" else SyncVectorEnv
    return form([lambda: Drawn(**options)] * num_envs, autoreset_mode=MODES[mode])


class Crowded(SyncVectorEnv):
    """Means something else by `agents`."""

    def __init__(self, num_envs: int, kind: str = "list") -> None:
        super().__init__([lambda: gymnasium.make("CartPole-v1")] * num_envs)
        self.agents = {"list": ["a", "b"], "none": (), "objects": (object(), object()), "numbers": (0, 1)}[kind]


class Sized(Counting):
    """A single environment, which means something else by `num_envs`."""

    def __init__(self, num_envs: int = 5) -> None:
        super().__init__((num_envs,))


class Tenfold(gymnasium.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return 10 * float(reward)


class Look(Hook):
    overflow = "block"

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self.returns: list[float] = []
        self.invalid = 0

    async def on_rollout_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        assert state.rollout_stats is not None
        self.invalid += int((~state.experience["valid"].astype(bool)).sum())
        self.lengths += state.rollout_stats.get("episode_length", [])
        self.returns += state.rollout_stats.get("episode_return", [])


def trained(config: TrainerConfig) -> tuple[Look, TrainerState]:
    look = Look()
    state = anyio.run(Trainer(config, hooks=[look]).run)
    return look, state


def weights(state: TrainerState) -> dict[str, Any]:
    assert state.policy is not None
    return {name: np.array(array) for name, array in state.policy.tensors.items()}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_function_returns_trains_and_is_evaluated_with_the_same_bits_in_workers_and_inline(kind: str) -> None:
    config = small_config(
        environment=f"{HERE}:carts",
        environment_options={"kind": kind},
        evaluation=EvaluationConfig(every=2, episodes=3, num_environments=2),
    )
    look, state = trained(config)
    assert look.lengths
    assert look.returns == look.lengths
    assert bool(look.invalid) == kind.endswith("next")
    assert state.eval_scores is not None
    again, in_workers = trained(replace(config, collection=replace(config.collection, backend="process")))
    assert again.lengths == look.lengths
    assert_same(weights(state), weights(in_workers))


def test_processes_give_the_bits_that_one_process_gives() -> None:
    states = [
        trained(small_config(environment=f"{HERE}:carts", environment_options={"kind": f"{form}-next"}))[1]
        for form in ("sync", "async")
    ]
    assert_same(*map(weights, states))


@pytest.mark.parametrize("function", ["made_by_gymnasium", "of_any_options"])
def test_make_vec_within_a_function_gives_the_bits_of_the_registered_vector(function: str) -> None:
    config = small_config(environment=f"{HERE}:{function}", collectors=2)
    assert make_vector(config.environment, 3).native
    same = replace(config, environment="CartPole-v1")
    assert_same(weights(trained(config)[1]), weights(trained(same)[1]))


def test_a_vector_may_count_its_copies_in_numbers_of_numpy() -> None:
    assert make_vector(f"{HERE}:counts_in_numpy", 3).native
    trained(small_config(environment=f"{HERE}:counts_in_numpy", collectors=2))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("always_three", "SyncVectorEnv whose num_envs is 3, expected 4; let it take num_envs as a keyword"),
        ("not_as_many", "SyncVectorEnv whose num_envs is 5, expected 4; make as many as num_envs says"),
        ("counts_in_floats", "SyncVectorEnv whose num_envs is 4.0, expected 4; let it be an int"),
        ("says_nothing", r"metadata\['autoreset_mode'\] = None; supported are .*NEXT_STEP: make it with one of them"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused_with_what_it_has_and_what_is_needed(function: str, message: str) -> None:
    with pytest.raises(InvalidEnvironment, match=message):
        anyio.run(Trainer(small_config(environment=f"{HERE}:{function}")).run)


@pytest.mark.parametrize("function", ["made_by_gymnasium", "of_any_options"])
def test_the_number_of_copies_is_no_option_of_a_vector(function: str) -> None:
    with pytest.raises(
        InvalidEnvironment, match=r"VectorEnv; leave num_envs out of its options: for vectors, it is coll"
    ):
        make_vector(f"{HERE}:{function}", 2, {"num_envs": 7})


@pytest.mark.parametrize("adaptation", [Adaptation(), Adaptation(max_episode_steps=5)])
def test_a_vector_that_leaves_resets_to_its_caller_is_refused(adaptation: Adaptation) -> None:
    with pytest.raises(InvalidEnvironment, match="AutoresetMode.DISABLED.*; supported are"):
        make_vector(f"{HERE}:carts", 2, {"kind": "sync-none"}, adaptation=adaptation)


def test_a_single_environment_that_means_something_else_by_num_envs_is_a_single_one() -> None:
    look, _ = trained(small_config(environment=f"{HERE}:Sized"))
    assert set(look.lengths) == {5.0}


@pytest.mark.parametrize("kind", ["list", "none", "objects", "numbers"])
def test_a_vector_of_ones_own_may_mean_something_else_by_agents(kind: str) -> None:
    look, state = trained(small_config(environment=f"{HERE}:Crowded", environment_options={"kind": kind}))
    other, plain = trained(small_config(environment=f"{HERE}:carts"))
    assert look.lengths == other.lengths
    assert_same(weights(state), weights(plain))


@pytest.mark.parametrize("kind", KINDS[:3])
def test_wrappers_and_limits_are_around_vectors_of_one_copy(kind: str) -> None:
    config = small_config(
        environment=f"{HERE}:carts",
        environment_options={"kind": kind},
        environment_wrappers=(f"{HERE}:Tenfold",),
        max_episode_steps=6,
        evaluation=EvaluationConfig(every=2, episodes=2),
    )
    look, state = trained(config)
    assert max(look.lengths) == 6.0
    assert look.returns == [10 * length for length in look.lengths]
    assert state.eval_scores is not None
    with pytest.raises(InvalidEnvironment, match="cannot have environment_wrappers; expected the mode"):
        make_vector(config.environment, 2, {"kind": kind}, "native", Adaptation.of(config))


def test_a_limit_that_the_function_takes_leaves_the_vector_whole() -> None:
    adaptation = Adaptation(max_episode_steps=7)
    assert make_vector(f"{HERE}:made_by_gymnasium", 2, adaptation=adaptation).native
    look, _ = trained(small_config(environment=f"{HERE}:made_by_gymnasium", max_episode_steps=7))
    assert max(look.lengths) == 7.0


@pytest.mark.parametrize("form", ["sync", "async"])
def test_a_run_is_resumed_exactly_or_says_that_new_episodes_begin(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(
        environment=f"{HERE}:carts",
        environment_options={"kind": f"{form}-next"},
        run_dir=tmp_path / "whole",
        checkpoints=CheckpointsConfig(every=2, keep=0),
    )
    whole = anyio.run(Trainer(config, hooks=[WaitForCheckpoints(config)]).run)
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = anyio.run(Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run)
    assert resumed.epoch == whole.epoch
    if form == "sync":
        assert_same(weights(whole), weights(resumed))
    assert ("the environment can't give its state" in caplog.text) == (form == "async")
    assert evaluate_checkpoint(tmp_path / "whole", episodes=2)["episodes"] == 2


@pytest.mark.parametrize("kind", KINDS[1:3])
def test_an_episode_of_a_vector_is_recorded(kind: str, tmp_path: Path) -> None:
    config = small_config(
        environment=f"{HERE}:drawn",
        environment_options={"kind": kind},
        run_dir=tmp_path,
        backend="process",
        evaluation=EvaluationConfig(every=2, episodes=1, video_every=2),
    )
    state = anyio.run(Trainer(config).run)
    assert state.results is not None
    (video,) = state.results["videos"].value.values()
    assert len(frames_of(Path(video), 32, 32)) >= 9, "a whole episode"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A run with three environments in processes, in a process group of its own, and all its processes."""
    arguments = ("--run-dir", folder, "--total-agent-steps", 10**9, "--environment", f"{HERE}:carts")
    options = ("--collection.num-environments", 3, "--collection.environment-options", "kind=async-next")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command("train", *arguments, *options), text=True, start_new_session=True, **pipes) as run:
        wait_for_epochs(folder, 2)
        family = psutil.Process(run.pid).children(recursive=True)
        assert len(family) >= 4 + 3, "as always, and a process for each environment"
        yield run, family
        assert_family_ends(family)


def test_environment_processes_end_with_a_host_that_is_killed(tmp_path: Path) -> None:
    with running(tmp_path / "run") as (run, _):
        run.kill()
        run.communicate(timeout=60)


def test_ctrl_c_ends_the_run_in_order_with_its_environment_processes(tmp_path: Path) -> None:
    with running(tmp_path / "run") as (run, _):
        os.killpg(run.pid, signal.SIGINT)
        output, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT, errors
    assert "trained" in output
    assert "Traceback" not in errors
