"""Environments of libraries that step all copies themselves: EnvPool's, and those with PufferLib's interface."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from orchestrator import (
    CheckpointsConfig,
    EvaluationConfig,
    Hook,
    Trainer,
    evaluate_checkpoint,
)
from orchestrator.config.presets import read_preset
from orchestrator.environments import EnvironmentFailed, InvalidEnvironment, check_environment, extra_of, make_vector
from orchestrator.environments.adaptation import Adaptation
from orchestrator.environments.native import NativeEnvironment
from tests.orchestrator.test_returned_vectors import Look, Tenfold, assert_same, trained, weights
from tests.orchestrator.training import WaitForCheckpoints, small_config

if TYPE_CHECKING:
    from pathlib import Path

    from state import TrainerState

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.test_native_libraries"
ENVPOOL = "envpool/CartPole-v1"
PUFFER = f"{HERE}:PufferCartPole"
SERIAL = f"{HERE}:puffer_serial"
__all__ = ["Tenfold"]


class PufferCartPole:
    """CartPole of numpy with the interface of `pufferlib.PufferEnv`, to whose buffers it writes: the step that ends an
    episode also begins the next one. Logs from time to time."""

    def __init__(self, num_envs: int = 1, limit: int = 500, buf: Any = None, seed: int = 0) -> None:
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.num_agents, self._limit = num_envs, limit
        assert buf is None
        self.observations = np.zeros((num_envs, 4), np.float32)
        self.rewards = np.zeros(num_envs, np.float32)
        self.terminals, self.truncations = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
        self._random = np.random.default_rng(seed)
        self._state, self._steps = np.zeros((num_envs, 4)), np.zeros(num_envs, int)

    def reset(self, seed: int | None = None) -> Any:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._begin(np.ones(self.num_agents, bool))
        return self.observations, []

    def step(self, actions: Any) -> Any:
        _, speed, angle, turn = self._state.T
        force = np.where(np.asarray(actions) == 1, 10.0, -10.0)
        push = (force + 0.05 * turn**2 * np.sin(angle)) / 1.1
        bend = (9.8 * np.sin(angle) - np.cos(angle) * push) / (0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1))
        change = np.stack([speed, push - 0.05 * bend * np.cos(angle) / 1.1, turn, bend], axis=1)
        self._state += 0.02 * change
        self._steps += 1
        self.rewards[:] = 1.0
        self.terminals[:] = (abs(self._state[:, 0]) > 2.4) | (abs(self._state[:, 2]) > 0.2095)
        self.truncations[:] = (self._steps >= self._limit) & ~self.terminals
        ended = self.terminals | self.truncations
        logs = [{"score": float(self._steps[ended].mean()), "name": "cart"}] if ended.any() else []
        self._begin(ended)
        return self.observations, self.rewards, self.terminals, self.truncations, logs

    def close(self) -> None:
        pass

    def _begin(self, copies: Any) -> None:
        self._state[copies] = self._random.uniform(-0.05, 0.05, (int(copies.sum()), 4))
        self._steps[copies] = 0
        self.observations[:] = self._state


def puffer_serial(num_envs: int) -> object:
    """PufferLib's own vector of Gymnasium's environments."""
    from pufferlib import emulation, vector  # type: ignore[import-not-found]

    creator = {"env_creator": gymnasium.make, "env_args": ["CartPole-v1"]}
    return vector.make(emulation.GymnasiumPufferEnv, env_kwargs=creator, num_envs=num_envs, backend=vector.Serial)


@pytest.fixture(params=[ENVPOOL, PUFFER, SERIAL])
def name(request: pytest.FixtureRequest) -> str:
    if needed := {ENVPOOL: "envpool", SERIAL: "pufferlib"}.get(request.param):
        pytest.importorskip(needed)
    return str(request.param)


def test_it_trains_and_is_evaluated_with_the_same_bits_each_time_in_workers_and_inline(name: str) -> None:
    config = small_config(environment=name, collectors=2, evaluation=EvaluationConfig(every=2, episodes=3))
    look, state = trained(config)
    assert look.returns == look.lengths
    assert len(look.lengths) > 5
    assert state.eval_scores is not None
    again, in_workers = trained(replace(config, collection=replace(config.collection, backend="process")))
    assert again.lengths == look.lengths
    assert_same(weights(state), weights(in_workers))


def test_wrappers_and_limits_hold(name: str) -> None:
    settings: dict[str, Any] = {"environment": name, "max_episode_steps": 6}
    assert max(trained(small_config(**settings))[0].lengths) == 6.0
    look: Look = trained(small_config(**settings, environment_wrappers=(f"{HERE}:Tenfold",)))[0]
    assert max(look.lengths) == 6.0
    assert look.returns == [10 * length for length in look.lengths]


def test_a_resumed_run_begins_new_episodes_where_a_simulator_keeps_its_state_and_says_so(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(
        environment=name, run_dir=tmp_path / "run", checkpoints=CheckpointsConfig(every=2, keep=0), epochs=4
    )
    whole = anyio.run(Trainer(config, hooks=[WaitForCheckpoints(config)]).run)
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = anyio.run(Trainer(branch, resume=tmp_path / "run" / "checkpoints" / "00000002").run)
    assert resumed.epoch == whole.epoch
    assert ("the environment can't give its state" in caplog.text) == (name == ENVPOOL)
    if name != ENVPOOL:
        assert_same(weights(whole), weights(resumed))
    assert evaluate_checkpoint(tmp_path / "run", episodes=2)["episodes"] == 2


@pytest.mark.timeout(900)
def test_cartpole_reaches_475(name: str, tmp_path: Path) -> None:
    preset = read_preset("cartpole")
    config = replace(
        preset,
        environment=name,
        run_dir=tmp_path / "run",
        evaluation=replace(preset.evaluation, every=0),
    )
    anyio.run(Trainer(config).run)
    assert evaluate_checkpoint(tmp_path / "run", episodes=20)["return_mean"] >= 475


def test_how_many_threads_step_envpools_copies_changes_no_result() -> None:
    pytest.importorskip("envpool")
    config = small_config(environment=ENVPOOL, num_environments=8, epochs=3)
    results: list[Any] = []
    for threads in (1, 2, 4):
        collection = replace(config.collection, environment_options={"num_threads": threads})
        results.append(trained(replace(config, collection=collection)))
    for look, state in results[1:]:
        assert look.lengths == results[0][0].lengths
        assert_same(weights(state), weights(results[0][1]))


def test_how_episodes_end_and_begin_in_envpool() -> None:
    pytest.importorskip("envpool")
    environment = make_vector(ENVPOOL, 3, adaptation=Adaptation(max_episode_steps=12))
    assert environment.native
    first = np.array(environment.reset(3))
    assert (np.array(environment.reset(4)) != first).any()
    assert (np.array(environment.reset(3)) == first).all()
    steps = [environment.step(np.array([number % 2, 1, 0])) for number in range(12)]
    fallen = [[number for number, step in enumerate(steps) if step.terminated[copy]] for copy in range(3)]
    assert fallen[0] == []
    assert all(len(numbers) == 1 for numbers in fallen[1:])
    assert steps[-1].truncated.tolist() == [True, False, False]
    for copy in (1, 2):
        (end,) = fallen[copy]
        assert [bool(step.valid[copy]) for step in steps[end : end + 3]] == [True, False, True][: 12 - end]
        assert steps[end].stats["elapsed_step"][0] == end + 1
    after = environment.step(np.zeros(3, np.int64))
    assert after.valid.tolist()[0] is False
    environment.close()
    environment.close()


def test_of_a_truncated_episode_the_observation_before_its_last_step_is_valued() -> None:
    environment = make_vector(PUFFER, 2, {"limit": 3})
    observations = [np.array(environment.reset(1))]
    for number in range(3):
        step = environment.step(np.array([number % 2, 1]))
        observations.append(np.array(step.observation))
    assert step.truncated.all()
    assert step.final_observation is not None
    np.testing.assert_array_equal(step.final_observation, observations[2])
    assert (observations[3] != observations[2]).all(), "which is the next episode's"
    assert step.stats["score"] == [3.0]


class Emulated(gymnasium.Wrapper[Any, Any, Any, Any]):
    """As PufferLib's emulation: others' observations in arrays of its own, with an axis for the agents."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self.emulated = {"observation_dtype": np.dtype(np.float32)}
        self.num_agents, self.is_obs_emulated, self.is_atn_emulated = 1, False, False
        self.single_observation_space, self.single_action_space = self.observation_space, self.action_space
        self.done = True

    def reset(self, **kwargs: Any) -> Any:
        self.done = False
        observation, info = super().reset(**kwargs)
        return observation[None], info


class EmulatedVector(PufferCartPole):
    """As PufferLib's `Serial` vector of emulated environments: copies begin anew in the step after an episode's end."""

    def __init__(self, num_envs: int = 1, *, agents: int = 1, flat: bool = False) -> None:
        super().__init__(num_envs)
        self.driver_env = Emulated()
        self.driver_env.num_agents, self.driver_env.is_obs_emulated = agents, flat
        self.emulated = self.driver_env.emulated
        self._ended = np.zeros(num_envs, bool)

    def reset(self, seed: int | None = None) -> Any:
        given = super().reset(seed)
        super()._begin(np.ones(self.num_agents, bool))
        return given

    def step(self, actions: Any) -> Any:
        given, begin = super().step(actions), self._ended
        super()._begin(begin)
        self.rewards[begin], self.terminals[begin], self.truncations[begin] = 0.0, False, False
        self._ended = self.terminals | self.truncations
        return *given[:4], []

    def _begin(self, copies: Any) -> None:
        self.observations[:] = self._state


def test_what_is_in_pufferlib_emulation_is_taken_out_of_it() -> None:
    emulated = small_config(environment=f"{HERE}:Emulated")
    itself = replace(emulated, environment="CartPole-v1", collection=replace(emulated.collection, mode="sync"))
    assert trained(emulated)[0].lengths == trained(itself)[0].lengths


def test_the_step_in_which_a_vector_of_pufferlib_begins_an_episode_is_not_learned_from() -> None:
    look, _ = trained(small_config(environment=f"{HERE}:EmulatedVector"))
    assert look.lengths
    assert look.returns == look.lengths
    assert len(look.lengths) - 4 <= look.invalid <= len(look.lengths)


@pytest.mark.parametrize("options", [{"agents": 2}, {"flat": True}])
def test_a_vector_of_pufferlib_whose_emulation_changes_what_is_learned_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidEnvironment, match=r"emulation.*return a single environment, without pufferlib\.vector"):
        make_vector(f"{HERE}:EmulatedVector", 2, options)


class Silent(PufferCartPole):
    """Its episodes end without its saying so, but for the logs."""

    def step(self, actions: Any) -> Any:
        *_, logs = super().step(actions)
        self.terminals[:] = False
        return self.observations, self.rewards, self.terminals, self.truncations, logs


def test_logs_are_statistics_of_the_step_that_gives_them_whether_an_episode_ends_or_not() -> None:
    environment = make_vector(f"{HERE}:Silent", 2)
    environment.reset(1)
    steps = [environment.step(np.ones(2, np.int64)) for _ in range(30)]
    assert not any(step.terminated.any() for step in steps)
    scores = [score for step in steps for score in step.stats.get("score", [])]
    assert scores
    assert 5 < min(scores) <= max(scores) < 15
    trained_with: list[float] = []

    class Scores(Hook):
        overflow = "block"

        async def on_rollout_end(self, state: TrainerState) -> None:
            assert state.rollout_stats is not None
            trained_with.append(state.rollout_stats["score"])
            assert "episode_return" not in state.rollout_stats

    anyio.run(Trainer(small_config(environment=f"{HERE}:Silent"), hooks=[Scores()]).run)
    assert trained_with


class Counting(PufferCartPole):
    """Logs in every step which one it is."""

    steps = 0

    def step(self, actions: Any) -> Any:
        self.steps += 1
        return *super().step(actions)[:4], [{"count": self.steps}, {"count": -self.steps}]


class Reseeded(PufferCartPole):
    """As those of PufferLib, whose resets need a seed, or take 0 where there is none."""

    def reset(self, seed: int | None = 0) -> Any:
        if not isinstance(seed, int):
            raise TypeError("seed must be an integer")
        return super().reset(seed)


def test_episodes_begin_differently_where_each_reset_sets_the_seed() -> None:
    def first_observations(seed: int) -> list[list[float]]:
        environment = make_vector(f"{HERE}:Reseeded", 1, adaptation=Adaptation(max_episode_steps=3))
        observed = [np.array(environment.reset(seed))]
        for _ in range(4):
            steps = [environment.step(np.zeros(1, np.int64)) for _ in range(3)]
            assert steps[-1].truncated.all()
            observed.append(np.array(steps[-1].observation))
        environment.close()
        return [one.ravel().tolist() for one in observed]

    first = first_observations(1)
    assert len({tuple(one) for one in first}) == 5
    assert first == first_observations(1)
    assert first != first_observations(2)


@pytest.mark.parametrize(
    "adaptation",
    [
        Adaptation(wrappers=(f"{HERE}:Tenfold",)),
        Adaptation(max_episode_steps=6),
        Adaptation(wrappers=(f"{HERE}:Tenfold",), max_episode_steps=6),
    ],
)
def test_logs_are_statistics_of_their_steps_in_wrappers_and_with_limits_too(adaptation: Adaptation) -> None:
    environment = make_vector(f"{HERE}:Counting", 1, adaptation=adaptation)
    assert not environment.native
    environment.reset(1)
    steps = [environment.step(np.ones(1, np.int64)) for _ in range(15)]
    assert [step.stats["count"] for step in steps] == [[number, -number] for number in range(1, 16)]
    environment.reset(2)
    assert environment.step(np.ones(1, np.int64)).stats["count"] == [16, -16]


class LogsNone(PufferCartPole):
    def step(self, actions: Any) -> Any:
        return *super().step(actions)[:4], None


def test_logs_that_are_no_list_of_dicts_are_refused() -> None:
    environment = make_vector(f"{HERE}:LogsNone", 2)
    environment.reset(1)
    with pytest.raises(EnvironmentFailed, match="step 1 of its 2 copies returned None as its logs.*a list of dicts"):
        environment.step(np.ones(2, np.int64))


class Logging(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        *others, info = super().step(action)
        return *others, info | {"logs": 1.0}


def test_infos_of_vectors_may_be_called_logs() -> None:
    from gymnasium.vector import SyncVectorEnv

    vector = SyncVectorEnv([lambda: Logging(gymnasium.make("CartPole-v1"))] * 2)
    environment = NativeEnvironment("own", vector)
    environment.reset(1)
    steps = [environment.step(np.ones(2, np.int64)) for _ in range(15)]
    assert any(step.stats.get("logs") for step in steps)
    assert all(bool(step.stats) == bool(step.terminated.any()) for step in steps)


class Pairs(PufferCartPole):
    """Two carts per game, each an agent."""

    def __init__(self, num_envs: int = 1) -> None:
        super().__init__(2 * num_envs)


def test_each_agent_of_a_game_of_several_is_a_row() -> None:
    environment = make_vector(f"{HERE}:Pairs", 3)
    assert (environment.games, environment.count, environment.agents) == (3, 6, ("agent_0", "agent_1"))
    look, state = trained(small_config(environment=f"{HERE}:Pairs", evaluation=EvaluationConfig(every=2, episodes=3)))
    assert look.returns == look.lengths
    assert state.eval_scores is not None
    with pytest.raises(InvalidEnvironment, match="has 2 agents, expected one"):
        make_vector(f"{HERE}:Pairs", 3, adaptation=Adaptation(max_episode_steps=3))


def test_pufferlibs_own_environments_are_found_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    ocean: Any = types.ModuleType("pufferlib.ocean.environment")
    ocean.MAKE_FUNCTIONS = {"cartpole": "Cartpole"}
    ocean.env_creator = {"puffer_cartpole": PufferCartPole}.__getitem__
    for module in ("pufferlib", "pufferlib.ocean"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setitem(sys.modules, "pufferlib.ocean.environment", ocean)
    look, _ = trained(small_config(environment="pufferlib/cartpole"))
    assert look.lengths
    with pytest.raises(InvalidEnvironment, match=r"PufferLib has no 'cartpol': did you mean cartpole\?"):
        make_vector("pufferlib/cartpol", 1)


def test_names_that_the_libraries_do_not_have_and_libraries_that_are_missing_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    (problem,) = check_environment(ENVPOOL)
    assert "pip install 'async-rl-orchestrator[envpool]' installs it" in problem
    assert extra_of(ENVPOOL) == "envpool"
    monkeypatch.undo()
    envpool = pytest.importorskip("envpool")
    assert "CartPole-v1" in envpool.list_all_envs()
    (problem,) = check_environment("envpool/CartPol-v1")
    assert "did you mean CartPole-v1 or" in problem
    with pytest.raises(InvalidEnvironment, match=r"'envpool/CartPole-v1' could not be made with .*colour"):
        make_vector(ENVPOOL, 1, {"colour": "red"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 3}, "its option 'seed' can't be set: copies are seeded from the run's"),
        ({"batch_size": 2}, "its option 'batch_size' can't be set: all copies step together"),
        ({"num_threads": -1}, "num_threads is -1, expected 0 .* or more"),
        ({"num_envs": 7}, "leave num_envs out of its options: for vectors, it is collection.num_environments"),
    ],
)
def test_options_of_envpool_that_the_run_decides_on_are_refused(options: dict[str, Any], message: str) -> None:
    pytest.importorskip("envpool")
    with pytest.raises(InvalidEnvironment, match=message):
        make_vector(ENVPOOL, 2, options)
