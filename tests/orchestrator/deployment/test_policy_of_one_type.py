"""The policy of one type of agents alone acts with the spaces of its agents, also when it is exported."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
from gymnasium import spaces

from orchestrator import CheckpointError, PolicyConfig, Trainer, TypePolicy, load_policy
from orchestrator.__main__ import main
from tests.games import SEEN, HideAndSeek, Matching
from tests.orchestrator.deployment.test_export import onnx_program, torch_program
from tests.orchestrator.test_many_agents import config_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

BOTH = PolicyConfig(hidden_sizes=(8,), by_type=(TypePolicy(type="seeker"), TypePolicy(type="hider")))
WITH_MEMORY = replace(BOTH, by_type=(TypePolicy(type="seeker", network="lstm", lstm_size=8), TypePolicy(type="hider")))
SQUASHED = replace(BOTH, box_actions="squash")


class Bits(Matching):
    """One type answers with bits, the other with numbers that begin with 3."""

    def __init__(self, **_: Any) -> None:
        super().__init__(("seeker_0", "hider_0"))

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.MultiBinary(3) if agent == "seeker_0" else spaces.Discrete(3, start=3)

    def step(self, actions: dict[str, Any]) -> Any:
        assert all(self.action_space(agent).contains(action) for agent, action in actions.items()), actions
        return super().step({agent: int(np.ravel(action)[0]) for agent, action in actions.items()})


def bits(**options: Any) -> Bits:
    return Bits(**options)


def trained(folder: Path, policy: PolicyConfig, environment: str = "tests.games:HideAndSeek", **settings: Any) -> Path:
    config = config_of(environment, policy=policy, steps=200, **settings)
    anyio.run(Trainer(replace(config, run_dir=folder)).run)
    return folder


@pytest.mark.parametrize(
    ("policy", "numbers"),
    [
        (BOTH, False),
        (WITH_MEMORY, False),
        (BOTH, True),
        (SQUASHED, True),
        (replace(BOTH, by_type=BOTH.by_type[:1]), False),
    ],
    ids=["choices", "memory", "clipped numbers", "squashed numbers", "others"],
)
def test_the_policies_of_types_play_a_game_each_for_its_own_agents(
    policy: PolicyConfig, numbers: bool, tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", policy, options={"numbers": numbers})
    game = HideAndSeek(numbers=numbers)
    names = {"seeker": "seeker", "hider": "others" if len(policy.by_type) == 1 else "hider"}
    policies = {of: load_policy(run, policy=name) for of, name in names.items()}
    joint = None if numbers else load_policy(run)
    observed, _ = game.reset(seed=1)
    for agent in game.possible_agents:
        one = policies[agent.partition("_")[0]]
        assert one.observation_space == game.observation_space(agent)
        assert one.action_space == game.action_space(agent)
        assert one.recurrent == (policy is WITH_MEMORY and agent == "seeker_0")
    states = {agent: policies[agent.partition("_")[0]].initial_state() for agent in game.agents}
    joint_states = {agent: None if joint is None else joint.initial_state() for agent in game.agents}
    while game.agents:
        actions: dict[str, Any] = {}
        for agent in game.agents:
            one, seen = policies[agent.partition("_")[0]], observed[agent]
            if one.recurrent:
                actions[agent], states[agent] = one.act(seen, state=states[agent])
            else:
                actions[agent] = one.act(seen)
            assert game.action_space(agent).contains(
                one.act(seen, deterministic=False, state=states[agent])[0]
                if one.recurrent
                else one.act(seen, deterministic=False)
            )
            if joint is None:
                continue
            whole = joint.observation_space.sample()
            of = names[agent.partition("_")[0]]
            whole["policy"], whole["seen"][of] = sorted(names.values()).index(of), seen
            choices = int(getattr(one.action_space, "n", 0))
            whole["used"] = np.array([1, 1, choices > 2], np.int8)
            if joint.recurrent:
                action, joint_states[agent] = joint.act(whole, state=joint_states[agent])
            else:
                action = joint.act(whole)
                assert joint.value(whole) == pytest.approx(one.value(seen), abs=1e-6)
            assert action == actions[agent]
        observed, *_ = game.step(actions)


def test_bits_and_choices_that_do_not_begin_with_0_are_of_the_agents_own_spaces(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", BOTH, f"{__name__}:bits")
    game = Bits()
    for of in ("seeker", "hider"):
        one = load_policy(run, policy=of)
        for _ in range(20):
            for deterministic in (True, False):
                assert game.action_space(f"{of}_0").contains(one.act(SEEN.sample(), deterministic=deterministic))
        batch = one.act(np.stack([SEEN.sample() for _ in range(5)]))
        assert len(batch) == 5


def test_the_spaces_of_types_are_known_where_environment_workers_step(tmp_path: Path) -> None:
    config = config_of("tests.games:HideAndSeek", policy=BOTH, steps=200)
    collection = replace(config.collection, environment_workers=2)
    anyio.run(Trainer(replace(config, collection=collection, run_dir=tmp_path / "run")).run)
    assert load_policy(tmp_path / "run", policy="seeker").observation_space == SEEN


def test_a_policy_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", BOTH)
    with pytest.raises(CheckpointError, match=r"no policy 'seekr'; did you mean seeker\?"):
        load_policy(run, policy="seekr")
    with pytest.raises(CheckpointError, match=r"no policy 'wolf'; expected one of hider, seeker"):
        load_policy(run, policy="wolf")
    one_for_all = trained(tmp_path / "other", PolicyConfig(hidden_sizes=(8,)), "tests.games:Matching")
    with pytest.raises(CheckpointError, match=r"no policy 'left': all agents have one policy"):
        load_policy(one_for_all, policy="left")


@pytest.mark.parametrize("to", ["torch", "onnx"])
@pytest.mark.parametrize("of", ["seeker", "hider"])
@pytest.mark.parametrize(("policy", "numbers"), [(WITH_MEMORY, False), (SQUASHED, True)], ids=["choices", "numbers"])
def test_what_is_exported_of_one_type_does_what_its_policy_does(
    to: str, of: str, policy: PolicyConfig, numbers: bool, tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", policy, options={"numbers": numbers})
    if to == "onnx":
        pytest.importorskip("onnxscript")
    assert main(["export", str(run), "--to", to, "--policy", of]) == 0
    file = run / f"policy-{of}.{'onnx' if to == 'onnx' else 'pt2'}"
    program, about = (onnx_program if to == "onnx" else torch_program)(file)
    one = load_policy(run, policy=of)
    assert about["network"] == f"{'lstm' if one.recurrent else 'auto'} of {of}"
    seen = [one.observation_space.sample() for _ in range(7)]
    if of == "hider":
        batch = {"sign": np.stack([observed["sign"] for observed in seen])}
        inputs: dict[str, Any] = {"observation/sign": batch["sign"]}
    else:
        inputs = {"observation": np.stack(seen)}
        batch = inputs["observation"]
    if one.recurrent:
        state = np.random.default_rng(1).normal(size=(7, 16)).astype(np.float32)
        outputs = program(inputs | {"state": state})
        action, following = one.act(batch, state=state)
        np.testing.assert_allclose(outputs["next_state"], following, atol=1e-5)
    else:
        outputs, action = program(inputs), one.act(batch)
    np.testing.assert_allclose(outputs["action"], action, atol=1e-5)
    assert f"{of}" in file.with_name(f"{file.name}.md").read_text().splitlines()[0]


@pytest.mark.parametrize("policy", [BOTH, WITH_MEMORY], ids=["choices", "memory"])
def test_all_policies_together_are_exported_for_the_joint_observation(policy: PolicyConfig, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", policy)
    assert main(["export", str(run), "--to", "torch"]) == 0  # which compares
    _, about = torch_program(run / "policy.pt2")
    assert json.dumps(about["inputs"]).count("observation/seen") == 2
