"""Types of agents with spaces of their own train with a policy each, in one run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from torch import nn

from orchestrator import (
    CheckpointError,
    CheckpointsConfig,
    ConfigurationError,
    EvaluationConfig,
    InvalidEnvironment,
    LearningConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
    TypePolicy,
    load_policy,
)
from orchestrator.command.evaluation import evaluate_checkpoint
from orchestrator.policies import NetworkError
from tests.orchestrator.snapshots.test_resume import assert_same
from tests.orchestrator.test_many_agents import Keep, config_of, of_package
from tests.orchestrator.training import WaitForCheckpoints
from tests.paths import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


class Narrow(nn.Module):
    """Gives one number less than actions need."""

    def __init__(self, spaces: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, spaces.action_parameters - 1)

    def forward(self, observation: Any) -> Any:
        return self.layer(observation), observation.sum(-1)


def narrow(spaces: Any) -> nn.Module:
    return Narrow(spaces)


class Counted(nn.Module):
    """Counts the rows that it is given, by what they are."""

    def __init__(self, spaces: Any) -> None:
        super().__init__()
        size = 3 if spaces.observation.shape else 4
        self.size, self.layer, self.critic = size, nn.Linear(size, spaces.action_parameters), nn.Linear(size, 1)

    def forward(self, observation: Any) -> Any:
        seen = observation["sign"] if isinstance(observation, dict) else observation
        rows[self.size].append(len(seen))
        return self.layer(seen), self.critic(seen)


rows: dict[int, list[int]] = {3: [], 4: []}


def counted(spaces: Any) -> nn.Module:
    return Counted(spaces)


class NoCritic(Counted):
    def forward(self, observation: Any) -> Any:
        parameters, value = super().forward(observation)
        return parameters, value.detach()


def no_critic(spaces: Any) -> nn.Module:
    return NoCritic(spaces)


GAME = "tests.games:HideAndSeek"
SEEKER, HIDER = TypePolicy(type="seeker"), TypePolicy(type="hider")
BOTH = PolicyConfig(hidden_sizes=(16,), by_type=(SEEKER, HIDER))
WITH_MEMORY = replace(BOTH, by_type=(replace(SEEKER, network="lstm", lstm_size=8), HIDER))


@pytest.fixture
def anyio_backend() -> str:
    """What agents do is the same in every event loop."""
    return "asyncio"


def learning(steps: int = 16_000, **settings: Any) -> TrainerConfig:
    settings = {"num_environments": 16, "horizon": 8, "policy": BOTH, "steps": steps} | settings
    return config_of(GAME, learning=LearningConfig(minibatches=4, learning_rate=3e-3), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"staleness": 0},
        {"staleness": 0.25},
        {"staleness": 1},
        {"policy": WITH_MEMORY},
        {"policy": replace(BOTH, by_type=(HIDER,))},
        {"options": {"numbers": True}},
    ],
    ids=["0", "0.25", "1", "lstm", "others", "numbers"],
)
async def test_each_type_learns_with_observations_and_actions_of_its_own(settings: dict[str, Any]) -> None:
    keep = Keep()
    await Trainer(learning(**settings), hooks=[keep]).run()
    for of, steps in (("seeker", 8), ("hider", 7.5)):
        name = f"episode_return/{of}"
        first, last = (float(np.mean(stats[name])) for stats in (keep.stats[0], keep.stats[-1]))
        assert last > first + 0.5 * (steps - first), of


@pytest.mark.parametrize("policy", [BOTH, WITH_MEMORY])
async def test_the_same_seed_gives_the_same_bits_and_a_resumed_run_too(
    policy: PolicyConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(GAME, policy=policy, steps=300, horizon=7)
    config = replace(config, run_dir=tmp_path / "whole", checkpoints=CheckpointsConfig(every=2, keep=0))
    whole = await Trainer(config, hooks=[WaitForCheckpoints(config)]).run()
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = await Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run()
    assert "resumed, but" not in caplog.text
    assert_same(whole, resumed)
    processes = replace(config, run_dir=None, collection=replace(config.collection, backend="process"))
    assert_same(whole, await Trainer(processes).run())


async def test_an_agent_takes_only_actions_of_its_own_and_its_policy_sees_only_its_own_agents() -> None:
    keep = Keep()
    final = await Trainer(config_of(GAME, policy=BOTH, steps=500), hooks=[keep]).run()
    for experience in keep.experience:
        seeker = experience["observation/policy"] == 1
        assert (experience["action"][seeker] < 2).all()
        # The games are stepped in order, each with the seeker first.
        assert (
            seeker[experience["valid"]] == (np.arange(6) % 3 == 0)[:, None].repeat(10, 1)[experience["valid"]]
        ).all()
    assert final.policy is not None
    counts = [
        float(tensor)
        for name, tensor in final.policy.tensors.items()
        if "observation_normalizer" in name and "count" in name
    ]
    learned = keep.experience
    seekers, hiders = (
        sum(int(((one["observation/policy"] == place) & one["valid"]).sum()) for one in learned) for place in (1, 0)
    )
    assert sorted(counts) == sorted([seekers, hiders])


@pytest.mark.parametrize("staleness", [0, 1])
async def test_each_network_computes_only_the_rows_of_its_own_agents(staleness: float) -> None:
    for of in rows.values():
        of.clear()
    policy = replace(BOTH, network=f"{__name__}:counted")
    await Trainer(learning(16 * 3 * 8 * 3, policy=policy, staleness=staleness)).run()
    of_seeker, of_hiders = (sum(of) for of in rows.values())
    assert 1.8 * of_seeker < of_hiders <= 2.0 * of_seeker  # two hiders, one of which leaves a step before the end


async def test_a_part_of_one_types_network_without_a_gradient_is_named_with_its_type() -> None:
    wrong = replace(BOTH, by_type=(SEEKER, replace(HIDER, network=f"{__name__}:no_critic")))
    with pytest.raises(NetworkError, match=r"the value that the network 'auto of hider' returns have no gradient"):
        await Trainer(config_of(GAME, policy=wrong)).run()


async def test_what_an_agent_that_is_out_observes_still_says_whose_it_is() -> None:
    keep = Keep()
    await Trainer(config_of(GAME, policy=BOTH, steps=500), hooks=[keep]).run()
    out = 0
    for experience in keep.experience:
        seeker = experience["observation/policy"] == 1
        assert (seeker == (np.arange(6) % 3 == 0)[:, None]).all()
        out += int((~experience["valid"]).sum())
    assert out > 0


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (
            replace(BOTH, by_type=(TypePolicy(type="seekr"),)),
            {},
            r"no agents of the type 'seekr', which policy.by_type names; did you mean seeker\?",
        ),
        (
            PolicyConfig(),
            {},
            r"all agents share one policy.*or give the types a policy each in policy.by_type: seeker, hider",
        ),
        (BOTH, {"mixed": True}, r"some of its agents choose, and others give the numbers of a Box"),
    ],
)
async def test_policies_that_do_not_fit_the_game_are_refused_with_the_cure(
    policy: PolicyConfig, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidEnvironment, match=message):
        await Trainer(config_of(GAME, policy=policy, options=options)).run()


async def test_types_are_refused_where_there_are_none_or_twice_or_with_a_mask() -> None:
    with pytest.raises(InvalidEnvironment, match=r"'CartPole-v1' is no ParallelEnv of PettingZoo.*policy.by_type"):
        await Trainer(config_of("CartPole-v1", policy=BOTH)).run()
    twice = replace(BOTH, by_type=(SEEKER, SEEKER))
    with pytest.raises(ConfigurationError, match=r"(?s)policy.by_type.*each type once"):
        await Trainer(config_of(GAME, policy=twice)).run()
    with pytest.raises(ConfigurationError, match=r"(?s)action_mask.*none with policy.by_type"):
        await Trainer(config_of(GAME, policy=BOTH, action_mask="info/mask")).run()


async def test_a_network_that_does_not_fit_is_named_with_its_type() -> None:
    wrong = replace(BOTH, by_type=(replace(SEEKER, network=f"{__name__}:narrow"), HIDER))
    with pytest.raises(NetworkError, match=r"narrow of seeker"):
        await Trainer(config_of(GAME, policy=wrong)).run()


async def test_predators_and_prey_train_evaluate_and_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mpe2")
    policy = PolicyConfig(
        hidden_sizes=(8,), by_type=(TypePolicy(type="adversary"), TypePolicy(type="agent", hidden_sizes=(4,)))
    )
    config = of_package("tag", {"max_cycles": 12}, tmp_path / "whole", steps=450, policy=policy)
    whole = await Trainer(config, hooks=[WaitForCheckpoints(config)]).run()
    assert whole.eval_scores is not None
    assert {key.rpartition("/")[2] for _, key in whole.eval_scores.agent_scores} == {
        "adversary",
        "agent",
        "team_return",
    }
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = await Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run()
    assert "resumed, but" not in caplog.text
    assert_same(whole, resumed)


def test_the_command_trains_and_evaluates_what_a_file_says_of_types(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        f'environment = "{GAME}"\ntotal_agent_steps = 600\ncollection.num_environments = 2\ncollection.horizon = 16\n'
        'learning.minibatches = 2\n[[policy.by_type]]\ntype = "seeker"\nnetwork = "mlp"\nhidden_sizes = [8]\n'
        '[[policy.by_type]]\ntype = "hider"\nactivation = "relu"\n'
    )
    run = tmp_path / "run"
    for arguments in (["train", "--config", str(file), "--run_dir", str(run)], ["eval", str(run), "--episodes", "2"]):
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    report = evaluate_checkpoint(run, episodes=2)
    assert {"return_mean/seeker", "return_mean/hider"} <= set(report)
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"rollout/episode_return/seeker", "rollout/episode_return/hider"} <= set(record)


async def test_the_best_checkpoint_may_be_that_of_one_type(tmp_path: Path) -> None:
    checkpoints = CheckpointsConfig(every=1, keep_best=1, best_metric="rollout/episode_return/seeker")
    config = replace(config_of(GAME, policy=BOTH), run_dir=tmp_path, checkpoints=checkpoints)
    await Trainer(replace(config, evaluation=EvaluationConfig(every=2, episodes=2))).run()
    assert list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("numbers", [False, True])
async def test_what_a_loaded_policy_does_is_of_the_joint_space_unless_bounds_would_be_lost(
    numbers: bool, tmp_path: Path
) -> None:
    await Trainer(replace(learning(300, options={"numbers": numbers}), run_dir=tmp_path / "run")).run()
    if numbers:
        with pytest.raises(CheckpointError, match="actions are Boxes of different sizes or bounds.*one action space"):
            load_policy(tmp_path / "run")
        return
    policy = load_policy(tmp_path / "run")
    for _ in range(20):
        joint = policy.observation_space.sample()
        assert policy.action_space.contains(policy.act(joint, deterministic=False))
