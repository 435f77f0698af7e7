"""Types of agents with policies of their own may each have masks of their actions: no other action is ever taken."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import numpy as np
import pytest
import torch
from gymnasium import spaces

from losses import Loss, Minibatch, PolicyEvaluation
from orchestrator import (
    CheckpointError,
    CheckpointsConfig,
    EvaluationConfig,
    LossesConfig,
    PolicyConfig,
    Trainer,
    TypePolicy,
    WrongObservation,
    load_policy,
)
from orchestrator.__main__ import main
from orchestrator.command.evaluation import evaluate_checkpoint
from orchestrator.environments import EnvironmentFailed, InvalidEnvironment
from tests.orchestrator.deployment.test_export import torch_program
from tests.orchestrator.snapshots.test_resume import assert_same
from tests.orchestrator.test_many_agents import Keep, config_of
from tests.orchestrator.training import WaitForCheckpoints, losses_with

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator import TrainerConfig

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.test_masks_by_type"
BOARD = spaces.Box(-1.0, 1.0, (3,), np.float32)
KING, PAWN, CLOCK, SWITCH = (TypePolicy(type=name) for name in ("king", "pawn", "clock", "switch"))
ALL = PolicyConfig(hidden_sizes=(8,), by_type=(KING, PAWN, CLOCK))
WITH_MEMORY = replace(ALL, by_type=(KING, replace(PAWN, network="lstm", lstm_size=4), CLOCK))


class Board:
    """Kings and pawns say which actions are possible, by chance, and the game fails where another is taken; clocks and
    switches have no masks. A pawn leaves in step 4. 6 steps.

    `form` says where masks are, and `fault` what is wrong in step `at`.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "board"}
    possible_agents: ClassVar[list[str]] = ["king_0", "pawn_0", "pawn_1", "clock_0", "switch_0"]
    own_actions: ClassVar[dict[str, spaces.Space[Any]]] = {
        "king": spaces.Discrete(5, start=3),
        "pawn": spaces.MultiDiscrete([2, 3]),
        "clock": spaces.Discrete(2),
        "switch": spaces.MultiBinary(2),
    }

    def __init__(self, form: str = "key", fault: str = "", of: str = "pawn_0", at: int = 2) -> None:
        self.form, self.fault, self.of, self.at = form, fault, of, at
        self.agents: list[str] = []
        self.generator = np.random.default_rng()

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.own_actions[agent[:-2]]

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        if self.form == "info" or not self.choices(agent):
            return BOARD
        mask: spaces.Space[Any] = spaces.MultiBinary(sum(self.choices(agent)))
        if agent[:-2] == "pawn":
            mask = spaces.Tuple([spaces.MultiBinary(2), spaces.Box(0, 1, (3,), np.int8)])
        return spaces.Dict({"observation": BOARD, "action_mask": mask})

    def choices(self, agent: str) -> list[int]:
        return {"king": [5], "pawn": [2, 3]}.get(agent[:-2], [])

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        self.agents, self.steps = list(self.possible_agents), 0
        return self.seen()

    def seen(self, over: bool = False) -> Any:
        observed: dict[str, Any] = {}
        infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.masks: dict[str, list[Any]] = {}
        for agent in self.agents:
            observed[agent] = self.generator.uniform(-1, 1, 3).astype(np.float32)
            if not self.choices(agent):
                if self.form == "info" and agent[:-2] == "clock":
                    infos[agent]["action_mask"] = np.ones(2, np.int8)
                continue
            parts = [self.generator.integers(0, 2, size, np.int8) for size in self.choices(agent)]
            for part in parts:
                part[self.generator.integers(len(part))] = 1
            self.masks[agent] = parts
            given: Any = tuple(np.zeros_like(part) for part in parts) if over else tuple(parts)
            if self.fault and self.steps == self.at and agent == self.of:
                given = {
                    "tensors": tuple(map(torch.from_numpy, parts)),
                    "hidden": np.ma.masked_equal(np.concatenate(parts), 0),
                    "none": tuple(np.zeros_like(part) for part in parts),
                    "twos": tuple(part * 2 for part in parts),
                    "short": np.ones(4, np.int8),
                    "no dict": np.ones(4, np.int8),
                    "missing": None,
                }[self.fault]
            if isinstance(given, tuple) and agent[:-2] == "king":
                given = given[0]
            if self.form == "info":
                infos[agent] = {} if given is None or over else {"action_mask": given}
                if self.fault == "no dict" and agent == self.of and self.steps == self.at:
                    infos[agent] = given
            else:
                observed[agent] = {"observation": observed[agent]}
                if given is not None:
                    observed[agent]["action_mask"] = given
        return observed, infos

    def step(self, actions: dict[str, Any]) -> Any:
        assert sorted(actions) == sorted(self.agents)
        rewards = dict.fromkeys(actions, 0.0)
        for agent, action in actions.items():
            assert self.action_space(agent).contains(action), (agent, action)
            chosen = np.ravel(action) - (3 if agent == "king_0" else 0)
            for choice, mask in zip(chosen, self.masks.get(agent, []), strict=False):
                assert mask[choice], f"{agent} took {action}, which {self.masks[agent]} forbids"
            rewards[agent] = float(chosen[0] == 0)
        self.steps += 1
        over = self.steps == 6
        ended = {agent: over or (agent == "pawn_1" and self.steps == 4) for agent in actions}
        observed, infos = self.seen(over)
        self.agents = [agent for agent in actions if not ended[agent]]
        return observed, rewards, ended, dict.fromkeys(actions, False), infos

    def close(self) -> None: ...


def configured(
    form: str = "key", mask: str | None = None, folder: Path | None = None, **settings: Any
) -> TrainerConfig:
    options = {"form": form, **settings.pop("options", {})}
    return config_of(
        f"{HERE}:Board",
        action_mask=mask or ("info/action_mask" if form == "info" else "action_mask"),
        options=options,
        run_dir=folder,
        checkpoints=CheckpointsConfig(enabled=folder is not None, every=2, keep=0),
        **({"policy": ALL} | settings),
    )


def never_forbidden(config: TrainerConfig) -> None:
    """Trains in games that fail where a forbidden action is taken; looks at what was recorded, too."""
    keep = Keep()
    final = anyio.run(Trainer(config, hooks=[keep]).run)
    assert final.policy is not None
    assert all(np.isfinite(array).all() for array in final.policy.tensors.values())
    assert final.loss_stats is not None
    assert all(np.isfinite(value) for value in final.loss_stats.values()), final.loss_stats
    for one in keep.experience:
        assert not any("action_mask" in name for name in one if name.startswith("observation"))
        masks, valid = one["action_mask"], one["valid"]
        assert masks.shape[2] == 5 + 3  # of the joint MultiDiscrete
        chosen = np.take_along_axis(masks, one["action"] + np.array([0, 5]), axis=-1)
        assert chosen[valid].all()
        games = masks.reshape(-1, 5, *masks.shape[1:])
        own = {"king": (games[:, 0], 5 + 1), "pawn": (games[:, 1], 2 + 3), "clock": (games[:, 3], 2 + 1)}
        for of, (given, most) in own.items():
            assert given.sum(-1).max() <= most, of
            assert of == "clock" or given.sum(-1).min() < most, of
        assert (games[:, 3] == [1, 1, 0, 0, 0, 1, 0, 0]).all()
        assert (games[:, 4] == [1, 1, 0, 0, 0, 1, 1, 0]).all()


@pytest.mark.parametrize("form", ["key", "info"])
def test_no_agent_of_any_type_takes_a_forbidden_action_in_20_000_steps(form: str) -> None:
    evaluation = EvaluationConfig(every=4, episodes=4)
    never_forbidden(configured(form, num_environments=16, horizon=32, steps=20_000, evaluation=evaluation))


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": WITH_MEMORY},
        {"policy": replace(ALL, by_type=(PAWN, KING, SWITCH))},
        {"staleness": 1, "losses": LossesConfig(names=("vtrace_actor", "vtrace_critic"))},
        {"evaluation": EvaluationConfig(every=1, episodes=2, deterministic=False)},
        {"workers": 2},
        {"collectors": 2, "backend": "process"},
    ],
    ids=["memory", "clock is of the others", "staleness", "drawn evaluation", "workers", "processes"],
)
@pytest.mark.parametrize("form", ["key", "info"])
def test_masks_of_types_go_with_everything(form: str, settings: dict[str, Any]) -> None:
    workers = (settings := dict(settings)).pop("workers", 0)
    config = configured(form, steps=600, **settings)
    never_forbidden(replace(config, collection=replace(config.collection, environment_workers=workers)))


@pytest.mark.parametrize("policy", [ALL, WITH_MEMORY], ids=["mlp", "memory"])
@pytest.mark.parametrize("form", ["key", "info"])
def test_a_run_with_masks_of_types_resumes_with_the_same_bits_and_is_evaluated(
    form: str, policy: PolicyConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(form, folder=tmp_path / "whole", policy=policy, horizon=7)
    whole = anyio.run(Trainer(config, hooks=[WaitForCheckpoints(config)]).run)
    branch = replace(config, run_dir=tmp_path / "branch")
    assert_same(whole, anyio.run(Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run))
    workers = replace(config.collection, environment_workers=2)
    branch = replace(config, run_dir=tmp_path / "workers", collection=workers)
    assert_same(whole, anyio.run(Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run))
    assert "resumed, but" not in caplog.text
    assert evaluate_checkpoint(tmp_path / "whole", episodes=3, deterministic=False)["episodes"] >= 3


class Reference(Loss):
    """Compares what the learner makes of each minibatch with distributions of what is allowed alone."""

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        mask, action = minibatch["action_mask"], minibatch["action"]
        valid = torch.ones_like(mask[..., 0]) if minibatch.valid is None else minibatch.valid
        logits, mask, action = evaluation.action_parameters[valid].double(), mask[valid], action[valid]
        assert (logits == -torch.inf).equal(~mask)
        log_prob = torch.zeros(len(action), dtype=torch.float64)
        entropy = torch.zeros(len(action), dtype=torch.float64)
        for axis, (part, allowed) in enumerate(zip(logits.split([5, 3], -1), mask.split([5, 3], -1), strict=True)):
            for row in range(len(action)):
                possible = allowed[row].nonzero().squeeze(-1)
                expected = torch.distributions.Categorical(logits=part[row, possible])
                index = (possible == action[row, axis]).nonzero().item()
                log_prob[row] += expected.log_prob(torch.tensor(index))
                entropy[row] += expected.entropy()
        torch.testing.assert_close(evaluation.log_prob[valid].double(), log_prob, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(evaluation.entropy[valid].double(), entropy, atol=1e-5, rtol=1e-5)
        if minibatch.update_epoch == 0 and minibatch.mb_idx == 0:
            torch.testing.assert_close(minibatch["proximal_log_prob"][valid].double(), log_prob, atol=1e-5, rtol=1e-5)
            self.track("compared", torch.ones(()))
        return evaluation.value.sum() * 0.0


def test_log_probabilities_and_entropies_are_those_of_what_each_agent_may_do() -> None:
    final = anyio.run(Trainer(configured(steps=400), losses=losses_with(Reference())).run)
    assert final.loss_stats is not None
    assert [value for name, value in final.loss_stats.items() if name.endswith("reference/compared")]


@pytest.mark.parametrize("of", ["king", "pawn"])
@pytest.mark.parametrize("form", ["key", "info"])
def test_the_policy_of_one_type_acts_and_is_exported_with_its_own_mask(form: str, of: str, tmp_path: Path) -> None:
    anyio.run(Trainer(configured(form, folder=tmp_path, policy=ALL)).run)
    policy, game = load_policy(tmp_path, policy=of), Board(form)
    agent = f"{of}_0"
    others = load_policy(tmp_path, policy="clock")
    assert policy.masked
    observed, infos = game.reset(seed=1)
    free = "others" if form == "info" else "clock"  # whose agents may do all that they can
    with pytest.raises(WrongObservation, match="agents of its type have none"):
        load_policy(tmp_path, policy=free).act(
            observed["clock_0" if free == "clock" else "switch_0"], action_mask=[1, 1]
        )
    seen, masks = [], []
    for _ in range(50):
        if not game.agents:
            observed, infos = game.reset()
        given = {"action_mask": infos[agent]["action_mask"]} if form == "info" else {}
        seen.append(observed[agent])
        masks.append(np.concatenate(game.masks[agent]))
        actions = {one: game.action_space(one).sample() for one in game.agents}
        actions = {agent: policy.act(observed[agent], deterministic=False, **given)} | {"clock_0": actions["clock_0"]}
        chosen = np.ravel(actions[agent]) - (3 if of == "king" else 0)
        assert all(mask[choice] for choice, mask in zip(chosen, game.masks[agent], strict=True))
        ones = {"action_mask": [1, 1]} if form == "info" else {}
        assert int(others.act(observed["clock_0"], **ones)) in (0, 1)
        game.steps += 1
        observed, infos = game.seen()
    assert main(["export", str(tmp_path), "--to", "torch", "--policy", of]) == 0  # which compares
    program, _ = torch_program(tmp_path / f"policy-{of}.pt2")
    if form == "info":
        inputs = {"observation": np.stack(seen), "action_mask": np.stack(masks).astype(bool)}
        expected = policy.act(np.stack(seen), action_mask=masks)
    else:
        expected = np.stack([policy.act(one) for one in seen])
        inputs = {"observation/observation": np.stack([one["observation"] for one in seen])}
        if of == "king":
            inputs["observation/action_mask"] = np.stack(masks)
        else:
            for axis in range(2):
                inputs[f"observation/action_mask/{axis}"] = np.stack([one["action_mask"][axis] for one in seen])
    np.testing.assert_array_equal(program(inputs)["action"], expected)


def test_all_policies_together_are_not_loaded_with_masks(tmp_path: Path) -> None:
    anyio.run(Trainer(configured(folder=tmp_path)).run)
    with pytest.raises(CheckpointError, match=r"choices of its own agents.*name one type.*--policy\): \w+, \w+"):
        load_policy(tmp_path)
    with pytest.raises(CheckpointError, match=r"no policy 'rook'"):
        load_policy(tmp_path, policy="rook")


@pytest.mark.parametrize(
    ("form", "fault", "of", "message"),
    [
        ("key", "none", "pawn_0", r"agent 'pawn_0' of copy 0.*forbids all 2 choices of axis 0.*of the type 'pawn'"),
        ("key", "none", "king_0", r"agent 'king_0' of copy 0.*forbids all 5 choices; .*of the type 'king'"),
        (
            "key",
            "twos",
            "king_0",
            r"(step 2|reset) of agent 'king_0' .*2 at place \d of the action mask; .*type 'king'",
        ),
        (
            "info",
            "missing",
            "king_0",
            r"'king_0' .*an info without the action mask .*give 1 .*type 'king'",
        ),
        (
            "key",
            "missing",
            "pawn_0",
            r"'pawn_0' .*observation without the keys \['action_mask'\] \(type 'pawn'\), which",
        ),
        (
            "key",
            "short",
            "king_0",
            r"'king_0' .*observation of key 'action_mask' \(type 'king'\) an array of shape \[4\]",
        ),
        ("info", "short", "pawn_0", r"'pawn_0' .*shape \[4\], expected 5 numbers; give 1 .*of the type 'pawn'"),
        ("info", "hidden", "pawn_0", r"'pawn_0' .*shape \[5\] with masked numbers \(fill them.*of the type 'pawn'"),
        ("info", "no dict", "pawn_0", r"agent 'pawn_0' .* returned int8 of shape \[4\] as the info, expected a dict"),
    ],
)
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_mask_names_agent_type_and_cure(
    form: str, fault: str, of: str, message: str, at: int, workers: int
) -> None:
    config = configured(form, options={"fault": fault, "of": of, "at": at})
    config = replace(config, collection=replace(config.collection, environment_workers=workers))
    with pytest.raises(EnvironmentFailed, match=message):
        anyio.run(Trainer(config).run)


@pytest.mark.parametrize("of", ["pawn_0", "king_0"])
def test_the_axes_of_a_mask_may_be_tensors(of: str) -> None:
    never_forbidden(configured("info", options={"fault": "tensors", "of": of}))


def test_a_mask_that_no_type_has_is_refused_with_what_they_have() -> None:
    with pytest.raises(InvalidEnvironment, match=r"no 'legal' in the observations of any type.*king: \['action_mask',"):
        anyio.run(Trainer(configured(mask="legal")).run)


@pytest.mark.parametrize(("form", "where"), [("key", "action_mask"), ("info", "info/action_mask")])
def test_masks_of_types_that_nothing_heeds_are_warned_of(
    form: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EnvironmentFailed, match="took") as failed:
        anyio.run(Trainer(replace(configured(form), action_mask=None)).run)
    notes = "".join(getattr(failed.value, "__notes__", []))
    assert f"set action_mask to '{where}'" in caplog.text + notes


@pytest.mark.parametrize(("key_of", "unheeded"), [("pawn", "king"), ("king", "pawn")])
def test_masks_of_one_type_that_nothing_heeds_beside_those_of_another_are_warned_of(
    key_of: str, unheeded: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(configured(mask="legal", options={"key_of": key_of}), environment=f"{HERE}:OtherKey")
    with pytest.raises(EnvironmentFailed, match=f"{unheeded}_. took") as failed:
        anyio.run(Trainer(config).run)
    notes = "".join(getattr(failed.value, "__notes__", []))
    assert f"agents with the policies ['{unheeded}'] that observe 'action_mask'" in caplog.text + notes


class OtherKey(Board):
    """The masks of one type have another key."""

    def __init__(self, key_of: str, form: str = "key") -> None:
        super().__init__(form)
        self.key_of = key_of

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        space = super().observation_space(agent)
        if agent[:-2] != self.key_of:
            return space
        assert isinstance(space, spaces.Dict)
        return spaces.Dict({"observation": BOARD, "legal": space["action_mask"]})

    def seen(self, over: bool = False) -> Any:
        observed, infos = super().seen(over)
        for agent in self.agents:
            if agent[:-2] == self.key_of:
                observed[agent]["legal"] = observed[agent].pop("action_mask")
        return observed, infos
