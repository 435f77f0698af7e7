"""MettaGrid's games: each agent is a row, which the simulator writes itself; and they are learned."""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from orchestrator import (
    CheckpointsConfig,
    ConfigurationError,
    EvaluationConfig,
    Hook,
    PolicyConfig,
    Trainer,
    evaluate_checkpoint,
)
from orchestrator.environments import InvalidEnvironment, check_environment, extra_of, make_vector
from orchestrator.environments.adaptation import Adaptation
from orchestrator.environments.mettagrid import MettaGridVector
from orchestrator.environments.native import NativeEnvironment
from tests.orchestrator.evaluation.test_evaluation import frames_of
from tests.orchestrator.test_returned_vectors import assert_same, trained, weights
from tests.orchestrator.training import WaitForCheckpoints, small_config

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator import TrainerConfig
    from state import TrainerState

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.test_mettagrid"
ARENA = "mettagrid/arena"


def config_with(network: str = "tokens", **settings: Any) -> TrainerConfig:
    settings = {"environment": ARENA, "environment_options": {"num_agents": 6, "max_steps": 20}} | settings
    return small_config(
        total_agent_steps=3 * 2 * 6 * 16 + 1,
        num_environments=2,
        horizon=16,
        policy=PolicyConfig(network=network, hidden_sizes=(8,), lstm_size=8),
        **settings,
    )


def own_game(num_agents: int = 3) -> Any:
    from mettagrid.builder.envs import make_navigation

    config = make_navigation(num_agents)
    config.game.max_steps = 9
    return config


class Rewards(Hook):
    overflow = "block"

    def __init__(self) -> None:
        self.means: list[float] = []
        self.shape: tuple[int, ...] = ()

    async def on_rollout_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        assert state.rollout_stats is not None
        self.shape = state.experience["observation"].shape
        self.means.append(float(state.experience["reward"].mean()))


@pytest.mark.parametrize("network", ["tokens", "tokens_lstm"])
def test_an_arena_trains_and_is_evaluated_with_the_same_bits_in_workers_and_inline(network: str) -> None:
    pytest.importorskip("mettagrid")
    config = config_with(network, collectors=2, evaluation=EvaluationConfig(every=2, episodes=2))
    look, state = trained(config)
    assert set(look.lengths) == {20.0}
    assert state.eval_scores is not None
    again, in_workers = trained(replace(config, collection=replace(config.collection, backend="process")))
    assert again.returns == look.returns
    assert_same(weights(state), weights(in_workers))


def test_each_agent_is_a_row_that_the_simulator_writes() -> None:
    pytest.importorskip("mettagrid")
    environment = make_vector(ARENA, 2, {"num_agents": 6, "max_steps": 5})
    assert (environment.games, environment.count, len(environment.agents)) == (2, 12, 6)
    observation = environment.reset(1)
    assert isinstance(observation, np.ndarray)
    assert (observation.shape, observation.dtype) == ((12, 500, 3), np.uint8)
    first = observation.copy()
    simulations = environment._environment._simulations  # type: ignore[attr-defined]
    for game, simulation in enumerate(simulations):
        rows = slice(6 * game, 6 * game + 6)
        assert np.shares_memory(observation[rows], simulation._c_sim.observations())
        np.testing.assert_array_equal(first[rows], simulation._c_sim.observations())
    for number in range(5):
        step = environment.step(np.arange(12) % 5)
        assert step.games_ended is not None
        assert step.games_ended.tolist() == [number == 4] * 2
    assert step.terminated.all()
    assert step.final_observation is not None
    assert (step.final_observation != step.observation).any(), "which is the next game's"
    assert set(step.stats["action.noop.success"]) == {5.0}
    assert (np.array(environment.reset(1)) == first).all()
    assert (np.array(environment.reset(2)) != first).any()
    simulators = [weakref.ref(simulation._c_sim) for simulation in simulations]
    environment.reset(3)
    simulators += [weakref.ref(simulation._c_sim) for simulation in simulations]
    assert [simulator() is None for simulator in simulators] == [True, True, False, False]
    environment.close()
    assert all(simulator() is None for simulator in simulators), "which have much memory"


def test_a_function_may_return_the_config_of_a_game() -> None:
    pytest.importorskip("mettagrid")
    rewards = Rewards()
    config = config_with(environment=f"{HERE}:own_game", environment_options={"num_agents": 4})
    anyio.run(Trainer(config, hooks=[rewards]).run)
    assert rewards.shape[0] == 2 * 4


def test_games_end_by_their_statistics_where_their_config_says_so() -> None:
    pytest.importorskip("mettagrid")
    config = own_game()
    config.game.end_episode_on_game_stats = {"tokens_written": 1.0}
    environment = NativeEnvironment("own", MettaGridVector(config, 2))
    environment.reset(1)
    for _ in range(2):
        step = environment.step(np.zeros(6, np.int64))
        assert step.truncated.all()
        assert step.games_ended is not None
        assert step.games_ended.all()
    environment.close()


def test_a_resumed_run_begins_new_games_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mettagrid")
    config = config_with(run_dir=tmp_path / "run", checkpoints=CheckpointsConfig(every=2, keep=0))
    whole = anyio.run(Trainer(config, hooks=[WaitForCheckpoints(config)]).run)
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = anyio.run(Trainer(branch, resume=tmp_path / "run" / "checkpoints" / "00000002").run)
    assert resumed.epoch == whole.epoch
    assert "the environment can't give its state" in caplog.text
    assert evaluate_checkpoint(tmp_path / "run", episodes=2)["return_mean"] >= 0


@pytest.mark.parametrize("environment", [ARENA, f"{HERE}:own_game"])
def test_games_are_recorded(environment: str, tmp_path: Path) -> None:
    pytest.importorskip("mettagrid")
    pytest.importorskip("moviepy")
    options = {"num_agents": 6} | ({"max_steps": 9} if environment == ARENA else {})
    config = config_with(
        environment=environment,
        environment_options=options,
        evaluation=EvaluationConfig(every=2, episodes=2, video_every=2, seed=5, deterministic=False),
        run_dir=tmp_path,
    )
    final = anyio.run(Trainer(config).run)
    video = max((tmp_path / "videos").iterdir())
    assert final.results["videos"].value == {f"training/{environment}": str(video)}
    game = make_vector(environment, 1, options)
    game.reset(5)
    assert isinstance(game, NativeEnvironment)
    drawn = game.render()
    game.close()
    assert isinstance(drawn, np.ndarray)
    frames = frames_of(video, *drawn.shape[:2]).astype(int)
    assert len(frames) == 9, "before each of the steps"
    assert np.abs(frames[0] - drawn).mean() < 5, "but for what the format loses"
    assert np.abs(frames[-1] - frames[0]).max() > 100, "agents have moved"


def test_a_picture_shows_each_type_and_each_agent() -> None:
    pytest.importorskip("mettagrid")
    environment = make_vector(ARENA, 1, {"num_agents": 6})
    environment.reset(1)
    assert isinstance(environment, NativeEnvironment)
    simulation = environment._environment._simulations[0]  # type: ignore[attr-defined]
    drawn: Any = environment.render()
    cell = len(drawn) // simulation.map_height
    assert drawn.shape == (cell * simulation.map_height, cell * simulation.map_width, 3)
    colors: dict[str, set[tuple[int, ...]]] = {}
    for one in simulation.grid_objects().values():
        middle = drawn[one["r"] * cell + cell // 2, one["c"] * cell + cell // 2]
        colors.setdefault(one["type_name"], set()).add(tuple(middle.tolist()))
    assert {name: len(found) for name, found in colors.items()} == {"agent": 6, "wall": 1, "altar": 1}
    assert len(set.union(*colors.values())) == 8
    environment.close()


def test_one_agent_may_have_wrappers_and_a_time_limit() -> None:
    pytest.importorskip("mettagrid")
    adaptation = Adaptation(wrappers=("gymnasium.wrappers:NormalizeReward",), max_episode_steps=7)
    environment = make_vector(ARENA, 2, {"num_agents": 1}, adaptation=adaptation)
    environment.reset(1)
    for number in range(7):
        assert environment.step(np.zeros(2, np.int64)).truncated.tolist() == [number == 6] * 2
    environment.close()


def test_wrappers_and_names_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extra_of(ARENA) == "mettagrid"
    for module in [one for one in sys.modules if one.startswith("mettagrid.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mettagrid", None)
    (problem,) = check_environment(ARENA)
    assert "pip install 'async-rl-orchestrator[mettagrid]' installs it" in problem
    monkeypatch.undo()
    pytest.importorskip("mettagrid")
    (problem,) = check_environment("mettagrid/arenas")
    assert "did you mean arena" in problem
    with pytest.raises(InvalidEnvironment, match="has 24 agents, expected one: a game of many can't be put"):
        make_vector(ARENA, 2, adaptation=Adaptation(max_episode_steps=7))
    for adapted in ({"environment_wrappers": ("gymnasium.wrappers:NormalizeReward",)}, {"max_episode_steps": 7}):
        with pytest.raises(InvalidEnvironment, match="has 6 agents, expected one: a game of many can't be put"):
            anyio.run(Trainer(config_with(**adapted)).run)
    with pytest.raises(ConfigurationError, match="agents: did you mean num_agents"):
        anyio.run(Trainer(config_with(environment_options={"agents": 3})).run)


class Beside(gymnasium.Env[Any, Any]):
    """Each episode is one step: to the side where the altar (tag 2) is, among walls (tag 1) on others."""

    observation_space = spaces.Box(0, 255, (40, 3), np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        places = self.np_random.permutation([0x56, 0x76, 0x65, 0x67])
        self._best = [0x56, 0x76, 0x65, 0x67].index(places[0])
        tokens = np.full((40, 3), 255, np.uint8)
        tokens[:4] = [(place, 6, 2 if number == 0 else 1) for number, place in enumerate(places)]
        self.np_random.shuffle(tokens[:4])
        return tokens, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.full((40, 3), 255, np.uint8), float(action == self._best), True, False, {}


def test_where_something_is_is_learned_from_tokens() -> None:
    rewards = Rewards()
    settings = {"num_environments": 32, "horizon": 32, "policy": PolicyConfig(network="tokens", hidden_sizes=(32,))}
    anyio.run(Trainer(small_config(environment=f"{HERE}:Beside", epochs=40, **settings), hooks=[rewards]).run)
    assert rewards.means[0] < 0.4
    assert np.mean(rewards.means[-3:]) > 0.6, rewards.means
