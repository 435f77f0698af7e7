"""Types of agents with spaces of their own train with a policy each, in one run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gymnasium import spaces
from torch import nn

from losses import Loss, ppo_losses
from orchestrator import (
    CheckpointError,
    CheckpointsConfig,
    ConfigurationError,
    EvaluationConfig,
    Hook,
    InvalidEnvironment,
    LearningConfig,
    LossesConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
    TypePolicy,
    load_policy,
)
from orchestrator.command.evaluation import evaluate_checkpoint
from orchestrator.environments.joint_spaces import JointSpaces
from orchestrator.hooks.included.progress import progress
from orchestrator.learning.learning_rate import LearningRate
from orchestrator.learning.statistics import with_means_of_policies
from orchestrator.policies import NetworkError
from tests.games import HideAndSeek, Matching
from tests.orchestrator.snapshots.test_resume import assert_same
from tests.orchestrator.test_many_agents import Keep, config_of, of_package
from tests.orchestrator.training import WaitForCheckpoints
from tests.paths import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from state.trainer_state import TrainerState

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


@pytest.mark.parametrize("squash", [False, True])
async def test_the_number_of_a_box_without_axes_is_an_array_as_for_all_environments(squash: bool) -> None:
    seen = spaces.Box(-1.0, 1.0, (2,))
    own = {"a_0": spaces.Box(-3, 3, (), np.int8), "b_0": spaces.Box(0.1, 2.0, (2,), np.float64)}
    joint = JointSpaces("game", {agent: (seen, space) for agent, space in own.items()}, ("a",), squash=squash)
    for agent, space in own.items():
        action = joint.action_of(agent, np.array([7.0, 0.0], np.float32))
        assert isinstance(action, np.ndarray)
        assert space.contains(action)


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


class Scaled(HideAndSeek):
    """The seeker is paid a thousand times as much."""

    def step(self, actions: dict[str, Any]) -> Any:
        observed, rewards, *rest = super().step(actions)
        return observed, {who: 1000 * gain if who == "seeker_0" else gain for who, gain in rewards.items()}, *rest


def scaled(**options: Any) -> Any:
    return Scaled(**options)


class Watch(Hook):
    """What is learned, and shown, in each epoch."""

    overflow = "block"

    def __init__(self) -> None:
        self.stats: list[Any] = []
        self.shown: list[dict[str, str]] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.stats.append(state.loss_stats)
        self.shown.append(progress(state, 1000))


async def test_the_metrics_and_the_progress_say_of_each_type_what_it_learns(tmp_path: Path) -> None:
    watch = Watch()
    config = replace(config_of(GAME, policy=BOTH), run_dir=tmp_path)
    await Trainer(config, hooks=[watch]).run()
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    for of in ("", "seeker/", "hider/"):
        tracked = {f"ppo_actor/{name}" for name in ("policy_loss", "entropy", "approx_kl", "clip_fraction")}
        tracked |= {"ppo_actor", "ppo_critic", "ppo_critic/value_loss", "reward", "explained_variance", "advantage_std"}
        names = {f"loss/{of}{name}" for name in tracked} | {f"policy/{of}entropy", f"experience/{of}explained_variance"}
        assert names <= set(record), sorted(record)
        assert f"rollout/episode_return/{of}".rstrip("/") in record
    shares = record["loss/seeker/share_of_steps"], record["loss/hider/share_of_steps"]
    assert sum(shares) == pytest.approx(1.0)
    for name in ("ppo_actor/entropy", "ppo_critic/value_loss", "reward"):
        of_each = [record[f"loss/{of}/{name}"] for of in ("seeker", "hider")]
        assert record[f"loss/{name}"] == pytest.approx(float(np.dot(shares, of_each)), rel=1e-4, abs=1e-6)
    assert record["loss/hider/ppo_actor/entropy"] != record["loss/seeker/ppo_actor/entropy"]
    assert all(name in watch.shown[-1]["of seeker"] for name in ("return", "policy_loss", "value_loss", "entropy"))


async def test_what_a_type_learns_does_not_depend_on_the_scale_of_anothers_rewards() -> None:
    config = config_of(GAME, policy=BOTH, steps=600)
    plain = await Trainer(config).run()
    paid_more = await Trainer(replace(config, environment=f"{__name__}:scaled")).run()
    assert plain.policy is not None
    assert paid_more.policy is not None
    hiders = [name for name in plain.policy.tensors if "hider_network" in name]
    assert hiders
    largest = 0.0
    for name in hiders:
        one, other = (np.asarray(state.policy.tensors[name]) for state in (plain, paid_more) if state.policy)
        largest = max(largest, float(np.abs(one - other).max()))
    assert largest < 1e-3  # the norm of all gradients together is clipped


async def test_each_type_has_the_coefficients_that_it_says() -> None:
    entropies: list[float] = []
    for coefficient in (0.0, 3.0):
        watch = Watch()
        policy = replace(BOTH, by_type=(replace(SEEKER, entropy_coefficient=coefficient), HIDER))
        await Trainer(learning(8_000, policy=policy), hooks=[watch]).run()
        entropies.append(watch.stats[-1]["seeker/ppo_actor/entropy"])
        assert watch.stats[-1]["hider/ppo_actor/entropy"] < 0.9
    assert entropies[0] < 0.5 < 0.6 < entropies[1]


@pytest.mark.parametrize("policy", [BOTH, WITH_MEMORY])
async def test_v_trace_learns_from_each_type_alone_too(policy: PolicyConfig) -> None:
    watch = Watch()
    names = ("vtrace_actor", "vtrace_critic")
    config = config_of(GAME, policy=policy, staleness=1, losses=LossesConfig(names=names))
    await Trainer(config, hooks=[watch]).run()
    for of in ("seeker", "hider"):
        assert np.isfinite([watch.stats[-1][f"{of}/{name}"] for name in (*names, "vtrace_actor/entropy")]).all()


class Follow(Loss):
    """Learns from the seeker only, and looks at who is who among all."""

    def compute(self, minibatch: Any, evaluation: Any) -> Any:
        own = minibatch["observation/policy"]
        if self.of_policy is not None:
            assert not minibatch.parts
            assert (own == 1).all()
            self.track("rows", float(len(own)))
        else:
            assert set(minibatch.parts) == {"seeker", "hider"}
            for place, of in enumerate(("hider", "seeker")):
                rows = minibatch.parts[of]
                assert (own[rows] == place).all()
                self.track(f"rows/{of}", float(len(own[rows])))
        return 0.0 * minibatch.mean(evaluation.entropy)


async def test_a_loss_of_ones_own_learns_from_one_type_or_tells_them_apart() -> None:
    watch = Watch()
    losses = [*(loss for of in ("seeker", "hider") for loss in of_each(of)), Follow(), Follow().for_policy("seeker")]
    await Trainer(config_of(GAME, policy=BOTH), losses=losses, hooks=[watch]).run()
    stats = watch.stats[-1]
    assert stats["seeker/follow/rows"] == stats["rows/seeker"] < stats["rows/hider"]
    assert {"seeker/ppo_actor/entropy", "hider/ppo_critic/value_loss"} <= set(stats)


def of_each(policy: str) -> list[Loss]:
    return [loss.for_policy(policy) for loss in ppo_losses()]


@pytest.mark.parametrize(("policy", "of"), [(BOTH, "hidr"), (PolicyConfig(), "hider")])
async def test_a_loss_of_a_policy_that_there_is_not_is_refused(policy: PolicyConfig, of: str) -> None:
    game = GAME if policy.by_type else "tests.games:Matching"
    losses = [*ppo_losses(), Follow().for_policy(of)]
    with pytest.raises(ConfigurationError, match=rf"losses.*{of}/follow"):
        await Trainer(config_of(game, policy=policy), losses=losses).run()


async def test_the_adaptive_learning_rate_follows_the_type_whose_policy_has_moved_furthest() -> None:
    rate = LearningRate(1e-3, "adaptive", 0.01)
    stats = {"seeker/ppo_actor/approx_kl": 0.001, "hider/ppo_actor/approx_kl": 0.05}
    rate.learned(
        with_means_of_policies(stats | {"seeker/share_of_steps": 0.9, "hider/share_of_steps": 0.1}, ("seeker", "hider"))
    )
    assert rate.adaptation < 1.0


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


@pytest.mark.parametrize("network", ["mlp", "lstm"])
@pytest.mark.parametrize(
    ("agents", "types"),
    [(("player_0", "player_1"), ("player",)), (("others_0", "left_0"), ("others", "left"))],
    ids=["one type of all agents", "a type called others"],
)
async def test_all_types_may_have_policies_of_their_own(
    agents: tuple[str, ...], types: tuple[str, ...], network: str
) -> None:
    policy = PolicyConfig(
        hidden_sizes=(8,), lstm_size=4, by_type=tuple(TypePolicy(type=of, network=network) for of in types)
    )
    final = await Trainer(config_of("tests.games:Matching", policy=policy, options={"agents": agents})).run()
    assert final.loss_stats is not None
    assert all(f"{of}/ppo_actor/policy_loss" in final.loss_stats for of in types), sorted(final.loss_stats)


async def test_an_observation_that_is_not_supported_is_named_as_its_type_has_it() -> None:
    with pytest.raises(InvalidEnvironment, match=r"'.*Written' has .* of key 'note' \(type 'left'\)"):
        await Trainer(config_of(f"{__name__}:Written", policy=replace(BOTH, by_type=(TypePolicy(type="left"),)))).run()


class Written(Matching):
    def observation_space(self, agent: str) -> spaces.Space[Any]:
        seen = super().observation_space(agent)
        return spaces.Dict(note=spaces.Text(5), seen=seen) if agent == "left_0" else seen


async def test_a_type_called_others_beside_types_without_a_policy_of_their_own_is_refused() -> None:
    policy = replace(BOTH, by_type=(TypePolicy(type="others"),))
    options = {"agents": ("others_0", "left_0", "right_0")}
    with pytest.raises(InvalidEnvironment, match="type 'others', which policy.by_type names.*name left, right there"):
        await Trainer(config_of("tests.games:Matching", policy=policy, options=options)).run()


async def test_types_are_refused_where_there_are_none_or_twice() -> None:
    with pytest.raises(InvalidEnvironment, match=r"'CartPole-v1' is no ParallelEnv of PettingZoo.*policy.by_type"):
        await Trainer(config_of("CartPole-v1", policy=BOTH)).run()
    twice = replace(BOTH, by_type=(SEEKER, SEEKER))
    with pytest.raises(ConfigurationError, match=r"(?s)policy.by_type.*each type once"):
        await Trainer(config_of(GAME, policy=twice)).run()


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
