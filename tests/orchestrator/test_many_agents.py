"""Games of many agents train, evaluate and resume, each agent being a row of the experience while it is in the game."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from torch import nn

from orchestrator import (
    CheckpointsConfig,
    ConfigurationError,
    EvaluationConfig,
    Hook,
    LearningConfig,
    LossesConfig,
    PolicyConfig,
    Trainer,
    load_policy,
)
from orchestrator.command.evaluation import evaluate_checkpoint
from orchestrator.environments import Adaptation, EnvironmentFailed, InvalidEnvironment, make_vector
from tests.orchestrator.snapshots.test_resume import assert_same
from tests.orchestrator.training import WaitForCheckpoints, small_config

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator import TrainerConfig
    from state.trainer_state import TrainerState

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MATCHING, DYING = "tests.games:Matching", "tests.games:Dying"
LSTM = PolicyConfig(network="lstm", hidden_sizes=(8,), lstm_size=4)


@pytest.fixture
def anyio_backend() -> str:
    """What agents do is the same in every event loop."""
    return "asyncio"


def config_of(environment: str, *, steps: int = 400, **settings: Any) -> TrainerConfig:
    """For `steps` agent steps, with 2 games, of 10 steps per epoch."""
    options = settings.pop("options", {})
    defaults: dict[str, Any] = {"num_environments": 2, "horizon": 10, "total_agent_steps": steps}
    config = small_config(environment=environment, **(defaults | settings))
    return replace(config, collection=replace(config.collection, environment_options=options))


class Keep(Hook):
    """Copies of what was experienced."""

    overflow = "block"

    def __init__(self) -> None:
        self.experience: list[dict[str, Any]] = []
        self.stats: list[Any] = []

    async def on_rollout_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        self.experience.append({name: np.array(state.experience[name]) for name in state.experience})
        self.stats.append(state.rollout_stats)


class Summing(nn.Module):
    """The value of an observation is the sum of its numbers."""

    def __init__(self, spaces: Any, **_: Any) -> None:
        super().__init__()
        self.logits = nn.Linear(3, spaces.action_parameters)

    def forward(self, observation: Any) -> Any:
        return self.logits(observation), observation.sum(-1) + 0.0 * self.logits.weight.sum()


async def test_each_agent_of_each_game_is_a_row() -> None:
    keep = Keep()
    final = await Trainer(config_of(MATCHING, steps=200), hooks=[keep]).run()
    assert final.agent_step == 4 * 2 * 3 * 10
    for experience in keep.experience:
        assert experience["reward"].shape == (6, 10)
        assert experience["valid"].all()
        # All agents of a game are paid the same.
        assert (experience["reward"].reshape(2, 3, 10) == experience["reward"].reshape(2, 3, 10)[:, :1]).all()
    tracker = final.stats_tracker
    assert tracker is not None
    assert tracker.episodes == 5 * 6  # of 8 steps each
    stats = keep.stats[1]
    assert {"episode_return", "episode_length", "episode_return/left", "episode_return/right", "team_return"} <= set(
        stats
    )
    assert (len(stats["episode_return"]), len(stats["episode_return/left"]), len(stats["team_return"])) == (6, 2, 2)
    assert sum(stats["team_return"]) == pytest.approx(sum(stats["episode_return"]))


async def test_agents_that_die_or_come_later_are_valid_rows_for_as_long_as_they_are_in_the_game() -> None:
    keep = Keep()
    policy = PolicyConfig(network=f"{__name__}:Summing", normalize_observations=False, normalize_rewards=False)
    await Trainer(config_of(DYING, steps=100, policy=policy, staleness=0), hooks=[keep]).run()
    expected = {  # a_0, a_1, b_0 in two games of 5 steps
        "valid": ["1100111001", "1110011100", "0011100111"],
        "episode_start": ["1000110001", "1000010000", "0010000100"],
        "terminated": ["0100001000", "0000000000", "0000000000"],
        "truncated": ["0000100001", "0010000100", "0000100001"],
    }
    for experience in keep.experience:
        for name, rows in expected.items():
            found = ["".join("01"[int(flag)] for flag in row) for row in experience[name]]
            assert found == rows * 2, name
        valid, next_value = experience["valid"], experience["next_value"]
        assert (experience["reward"][~valid] == 0).all()
        assert (experience["observation"][~valid] == 0).all()
        assert (next_value[~valid | experience["terminated"]] == 0).all()
        # A truncation bootstraps from the last observation, though the row is empty or of another life afterwards.
        np.testing.assert_allclose(next_value[1, 2], 0.5 + 3 / 8 + 0.5)
        np.testing.assert_allclose(next_value[0, 4], 0.25 + 5 / 8 + 0.5)
        np.testing.assert_allclose(next_value[2, 4], 0.75 + 5 / 8 + 0.5)
        np.testing.assert_allclose(next_value[2, 9], 0.75 + 5 / 8 + 0.5)


async def test_what_agents_return_is_counted_by_life_by_type_and_by_game() -> None:
    keep = Keep()
    final = await Trainer(config_of(DYING, steps=100), hooks=[keep]).run()
    for stats in keep.stats:
        assert sorted(stats["episode_return"]) == sorted([2.0, 3.0, 1.0, 3.0] * 4)
        assert sorted(stats["episode_return/a"]) == sorted([2.0, 3.0, 1.0] * 4)
        assert stats["episode_return/b"] == (3.0,) * 4
        assert stats["team_return"] == (9.0,) * 4
        assert sorted(stats["lived"]) == sorted([2.0, 3.0, 5.0, 5.0] * 4)  # of the last infos
    assert final.agent_step == 36 * len(keep.stats)


@pytest.mark.parametrize("network", ["mlp", "lstm"])
async def test_an_agent_that_is_out_reaches_neither_losses_nor_normalizers(network: str) -> None:
    seen: list[float] = []
    keep = Keep()

    class Look(Hook):
        overflow = "block"

        async def on_epoch_end(self, state: TrainerState) -> None:
            assert state.policy is not None
            assert state.loss_stats is not None
            count = next(
                v for name, v in state.policy.tensors.items() if name.endswith("observation_normalizer.parts.0.count")
            )
            seen.append(float(count))
            assert state.loss_stats["reward"] == 1.0

    policy = PolicyConfig(
        network=network, hidden_sizes=(8,), lstm_size=4, normalize_observations=True, normalize_rewards=False
    )
    await Trainer(config_of(DYING, steps=100, policy=policy), hooks=[keep, Look()]).run()
    assert seen == [36.0 * epochs for epochs in range(1, len(seen) + 1)]


async def test_a_recurrent_state_is_forgotten_where_an_agent_comes_back() -> None:
    keep = Keep()
    final = await Trainer(config_of(DYING, steps=100, policy=LSTM, staleness=0, horizon=4), hooks=[keep]).run()
    assert final.policy is not None
    # a_0 comes back with the observation that the fifth step of the first rollout begins with.
    for experience in keep.experience:
        begins = experience["episode_start"][:, 0]
        assert (experience["recurrent_state"][begins] == 0).all()
    assert any(experience["episode_start"][:, 0].any() for experience in keep.experience[1:])


@pytest.mark.parametrize("environment", [MATCHING, DYING, "tests.games:Remembering"])
@pytest.mark.parametrize("policy", [PolicyConfig(hidden_sizes=(8,)), LSTM])
async def test_the_same_seed_gives_the_same_bits_and_a_resumed_run_too(
    environment: str, policy: PolicyConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(environment, policy=policy, steps=300, horizon=7)
    config = replace(config, run_dir=tmp_path / "whole", checkpoints=CheckpointsConfig(every=2, keep=0))
    whole = await Trainer(config, hooks=[WaitForCheckpoints(config)]).run()
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = await Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run()
    assert "resumed, but" not in caplog.text
    assert_same(whole, resumed)
    processes = replace(config, run_dir=None, collection=replace(config.collection, backend="process"))
    assert_same(whole, await Trainer(processes).run())


async def test_minibatches_divide_the_rows_of_all_agents() -> None:
    config = config_of(MATCHING, policy=LSTM, num_environments=1, steps=60, learning=LearningConfig(minibatches=3))
    await Trainer(config).run()
    with pytest.raises(
        ConfigurationError, match=r"a divisor of the 1 x 3 segments of an epoch \(one for each agent\): 3 / 2"
    ):
        await Trainer(replace(config, learning=LearningConfig(minibatches=2))).run()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("vanishes", r"step 2 of agent 'a_1' of copy 0 of 2 returned agents without it, though neither"),
        ("stays", r"step 2 of copy 0 of 2 returned agents with 'a_0' in it, which has just terminated"),
        (
            "stranger",
            r"step 2 of copy 0 of 2 returned \['c_0'\] among its agents, which are not among its possible_agents",
        ),
        ("unseen", r"step 2 of agent 'b_0' of copy 0 of 2 returned no observation of 'b_0'; return one of each"),
        ("unpaid", r"step 2 of agent 'a_1' of copy 0 of 2 returned no reward of it, though it has acted"),
        ("nan", r"gave nan in the observation of agent 'a_1' of copy 0, step 2 of the rollout; expected finite"),
        ("raises", r"step 2 of copy 0 of 2 failed with OSError: the simulator is gone"),
        ("infos", r"step 2 of agent 'a_1' of copy 0 of 2 returned a list of float as the info, expected a dict"),
        (
            "shape",
            r"step 2 of agent 'a_1' of copy 0 of 2 returned as the observation an array of shape \[4\], expected \[3\]",
        ),
    ],
)
async def test_what_a_game_does_wrong_is_named_with_agent_copy_and_step(fault: str, message: str) -> None:
    with pytest.raises(EnvironmentFailed, match=f"environment '{DYING}'.*{message}"):
        await Trainer(config_of(DYING, options={"fault": fault})).run()


async def test_a_game_may_do_what_it_likes_with_the_dict_of_actions_and_use_its_own_again() -> None:
    plain, emptying = Keep(), Keep()
    await Trainer(config_of(MATCHING, steps=100), hooks=[plain]).run()
    await Trainer(config_of("tests.games:Emptying", steps=100), hooks=[emptying]).run()
    for one, other in zip(plain.experience, emptying.experience, strict=True):
        assert one["reward"].any()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Unequal", r"agent 'right_0' has the spaces Box\(.*\(4,\).* agent 'left_0' has Box\(.*\(3,\).*supersuit"),
        ("TakesTurns", r"an AECEnv whose agents take turns .*turn_based_aec_to_parallel"),
        ("Nobody", r"a Nobody without possible_agents; expected the names"),
    ],
)
async def test_games_that_cannot_be_played_are_refused_with_the_cure(name: str, message: str) -> None:
    with pytest.raises(InvalidEnvironment, match=message):
        await Trainer(config_of(f"tests.games:{name}")).run()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            "set",
            r"possible_agents are \{'a_[01]', 'a_[01]'\}, with an order that is another in each process; expected a",
        ),
        (
            "twice",
            r"possible_agents are \['a_0', 'a_1', 'a_0'\], with a name twice; expected a list of different names",
        ),
    ],
)
async def test_agents_have_different_names_in_an_order(form: str, message: str) -> None:
    assert make_vector("tests.games:Named", 2).agents == ("a_0", "a_1")
    with pytest.raises(InvalidEnvironment, match=message):
        await Trainer(config_of("tests.games:Named", options={"form": form})).run()


async def test_wrappers_and_a_time_limit_hold_for_games() -> None:
    keep = Keep()
    config = config_of(MATCHING, environment_wrappers=("tests.games:Doubled",), max_episode_steps=5)
    await Trainer(config, hooks=[keep]).run()
    for experience, stats in zip(keep.experience, keep.stats, strict=True):
        assert set(stats["episode_length"]) == {5.0}
        assert experience["truncated"][:, [4, 9]].all()
        assert not experience["terminated"].any()
        assert experience["reward"].max() > 1.0
    with pytest.raises(
        InvalidEnvironment, match=r"its wrapper 'tests.games:number' returned a int, expected a pettingzoo\.Par"
    ):
        make_vector(MATCHING, 1, adaptation=Adaptation(wrappers=("tests.games:number",)))


async def test_masks_in_the_infos_of_agents_forbid_actions() -> None:
    keep = Keep()
    config = config_of(DYING, steps=100, action_mask="info/action_mask", options={"masked": True})
    await Trainer(config, hooks=[keep]).run()
    for experience in keep.experience:
        forbidden = np.take_along_axis(~experience["action_mask"], experience["action"][..., None], -1)[..., 0]
        assert not (forbidden & experience["valid"]).any()
        assert (experience["action"][[1, 4]][experience["valid"][[1, 4]]] == 1).any()


async def test_fields_are_recorded_from_the_infos_of_agents() -> None:
    from losses import Loss, ppo_losses
    from state.experience import FieldSpec

    class Lived(Loss):
        def experience_fields(self) -> tuple[FieldSpec, ...]:
            return (FieldSpec("lived", (), "float32"),)

        def compute(self, minibatch: Any, evaluation: Any) -> Any:
            return evaluation.value.sum() * 0.0

    keep = Keep()
    await Trainer(config_of(DYING, steps=100), hooks=[keep], losses=[*ppo_losses(), Lived()]).run()
    for experience in keep.experience:
        steps = np.tile(np.arange(1, 6), 2)
        assert (experience["lived"] == np.where(experience["valid"], steps, 0)).all()


async def test_games_are_evaluated_whole_and_filmed_once(tmp_path: Path) -> None:
    evaluation = EvaluationConfig(every=2, episodes=3, num_environments=2)
    config = replace(config_of(MATCHING), run_dir=tmp_path, evaluation=evaluation)
    final = await Trainer(config).run()
    assert final.eval_scores is not None
    metrics = final.eval_scores.metrics()
    of_agents = {name for name in metrics if name.startswith(f"eval/training/{MATCHING}/")}
    assert of_agents == {f"eval/training/{MATCHING}/{of}" for of in ("left", "right", "team_return")}
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["rollout/team_return"] == pytest.approx(3 * record["rollout/episode_return/left"])
    report = evaluate_checkpoint(tmp_path, episodes=5)
    assert report["episodes"] == 5
    assert report["team_return_mean"] == pytest.approx(3 * report["return_mean"])  # type: ignore[operator]
    assert report["return_mean/left"] == pytest.approx(report["return_mean/right"])


async def test_evaluation_counts_the_lives_of_agents(tmp_path: Path) -> None:
    await Trainer(config_of(DYING, steps=100, run_dir=tmp_path)).run()
    report = evaluate_checkpoint(tmp_path, episodes=3)
    assert report["episodes"] == 3
    assert report["return_mean"] == pytest.approx(9 / 4)
    assert report["return_mean/a"] == pytest.approx(2.0)
    assert report["team_return_mean"] == 9.0


async def test_a_video_shows_the_game_once(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    from orchestrator.evaluation.plan import EvaluationPlan, spaces_of
    from orchestrator.evaluation.video import record_episode
    from orchestrator.policies import build_policy
    from tests.orchestrator.evaluation.test_evaluation import frames_of

    policy = build_policy(PolicyConfig(), spaces_of(MATCHING, {}), 1)
    plan = EvaluationPlan(environment=MATCHING, episodes=1, copies=1, seed=1, deterministic=True)
    record_episode(policy, plan, tmp_path / "game.mp4")
    assert len(frames_of(tmp_path / "game.mp4", 32, 32)) == 9  # one before each of the 8 steps, and the last


async def test_a_policy_for_agents_is_loaded_without_the_game(tmp_path: Path) -> None:
    await Trainer(config_of(MATCHING, steps=100, run_dir=tmp_path)).run()
    policy = load_policy(tmp_path)
    assert int(policy.act(np.zeros(3, np.float32))) in (0, 1)


async def test_agents_learn_together() -> None:
    config = small_config(environment=MATCHING, num_environments=8, horizon=32, total_agent_steps=40_000)
    config = replace(config, learning=LearningConfig(), policy=PolicyConfig(), losses=LossesConfig())
    final = await Trainer(config).run()
    tracker = final.stats_tracker
    assert tracker is not None
    assert tracker.recent_mean("episode_return") > 7.0  # type: ignore[operator]
    # A random policy has 4, of 8.


def of_package(name: str, options: dict[str, Any], folder: Path, **settings: Any) -> TrainerConfig:
    config = config_of(f"tests.games:{name}", options=options, horizon=16, **settings)
    evaluation = EvaluationConfig(every=2, episodes=2, num_environments=2)
    return replace(config, run_dir=folder, evaluation=evaluation, checkpoints=CheckpointsConfig(every=2, keep=0))


@pytest.mark.parametrize(
    ("name", "options", "package", "of"),
    [
        ("spread", {"max_cycles": 12}, "mpe2", {"agent", "team_return"}),
        ("rock_paper_scissors", {}, "pettingzoo", {"player", "team_return"}),
    ],
)
async def test_games_of_pettingzoo_train_evaluate_and_resume_bit_for_bit(
    name: str, options: dict[str, Any], package: str, of: set[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(package)
    config = of_package(name, options, tmp_path / "whole", steps=330)
    whole = await Trainer(config, hooks=[WaitForCheckpoints(config)]).run()
    assert whole.eval_scores is not None
    assert {key.rpartition("/")[2] for _, key in whole.eval_scores.agent_scores} == of
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = await Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run()
    assert "resumed, but" not in caplog.text
    assert_same(whole, resumed)
    processes = replace(config, run_dir=None, collection=replace(config.collection, backend="process"))
    processes = replace(processes, evaluation=EvaluationConfig(), checkpoints=CheckpointsConfig())
    assert_same(whole, await Trainer(processes).run())


async def test_a_battle_trains_with_the_same_bits_and_says_that_it_begins_again_when_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("magent2")
    keep = Keep()
    config = of_package("battle", {}, tmp_path, steps=700, policy=PolicyConfig(network="mlp", hidden_sizes=(8,)))
    final = await Trainer(config, hooks=[keep]).run()
    assert final.eval_scores is not None
    assert {key.rpartition("/")[2] for _, key in final.eval_scores.agent_scores} == {"red", "blue", "team_return"}
    again, bare = Keep(), replace(config, run_dir=None, evaluation=EvaluationConfig(), checkpoints=CheckpointsConfig())
    await Trainer(bare, hooks=[again]).run()
    for first, second in zip(keep.experience, again.experience, strict=True):
        assert all(np.array_equal(first[field], second[field]) for field in first)
    with caplog.at_level(logging.WARNING):
        await Trainer(replace(config, total_agent_steps=900), resume=tmp_path).run()
    assert "in progress begin again: the environment can't give its state: magent2." in caplog.text


async def test_agents_die_in_a_game_of_pettingzoo_before_it_ends() -> None:
    pytest.importorskip("pygame")
    pytest.importorskip("pettingzoo")
    keep = Keep()
    options = {"spawn_delay": 2, "max_zombies": 30, "max_cycles": 150, "line_death": True}
    config = config_of("tests.games:knights_archers_zombies", options=options, horizon=64, steps=1200)
    await Trainer(config, hooks=[keep]).run()
    valid, ended = (
        np.concatenate([experience[name] for experience in keep.experience], axis=1).reshape(2, 4, -1)
        for name in ("valid", "terminated")
    )
    assert ended.any()
    # Somebody was out while others went on.
    assert (valid.any(1) & ~valid.all(1)).any()
    again = Keep()
    await Trainer(config, hooks=[again]).run()
    for first, second in zip(keep.experience, again.experience, strict=True):
        assert all(np.array_equal(first[field], second[field]) for field in first)


async def test_a_game_that_has_nothing_to_close_needs_no_close(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr("tests.games.Matching.close")
    config = config_of(MATCHING, evaluation=EvaluationConfig(every=1, episodes=1))
    state = await Trainer(config).run()
    assert state.eval_scores is not None
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
