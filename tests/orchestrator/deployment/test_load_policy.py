"""A trained policy that acts without its environment: as evaluation does, with one observation or with many."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from orchestrator import (
    CheckpointError,
    CheckpointFolder,
    CheckpointsConfig,
    ConfigurationError,
    LoadedPolicy,
    PolicyConfig,
    Trainer,
    TrainerConfig,
    WrongObservation,
    evaluate_checkpoint,
    find_checkpoint,
    load_policy,
)
from orchestrator.checkpoints.checkpoint import open_checkpoint
from orchestrator.checkpoints.manifest import in_folder
from orchestrator.config.own_code import OwnCodeError
from orchestrator.environments.recorded_spaces import recorded_spaces, space_from_json, space_to_json
from orchestrator.environments.vector import copy_seeds
from orchestrator.policies import NetworkError
from orchestrator.policies.acting import PolicyFailed
from tests.orchestrator.training import small_config
from tests.paths import PROJECT
from tests.used_environments import CASES, STEPS, make

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def config_of(case: str, run_dir: Path | None, **settings: Any) -> TrainerConfig:
    policy = PolicyConfig(**{"hidden_sizes": (8,), **CASES[case].policy})
    return small_config(
        epochs=2,
        environment="tests.used_environments:make",
        environment_options={"case": case},
        policy=policy,
        action_mask=CASES[case].action_mask,
        run_dir=run_dir,
        checkpoints=CheckpointsConfig(every=0),
        **settings,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a run that has trained in a case."""
    folder, trained = tmp_path_factory.mktemp("runs"), dict[str, Any]()

    def run(case: str) -> Path:
        if case not in trained:
            trained[case] = folder / case.replace(" ", "-")
            anyio.run(Trainer(config_of(case, trained[case])).run)
        return trained[case]

    return run


def play(policy: LoadedPolicy, case: str, seed: int) -> tuple[float, list[Any], list[Any]]:
    """The return of an episode, its observations and its actions."""
    environment = make(case)
    observation, info = environment.reset(seed=seed)
    state, ended, score = policy.initial_state(), False, 0.0
    observations, actions = [], []
    by_info = (CASES[case].action_mask or "").startswith("info/")
    while not ended:
        observations.append(observation)
        action, state = policy.act(observation, state=state, action_mask=info["mask"] if by_info else None)
        actions.append(action)
        observation, reward, ended, _, info = environment.step(action)
        score += reward
    assert len(actions) == STEPS
    return score, observations, actions


@pytest.mark.parametrize("case", CASES)
def test_it_acts_as_evaluation_does(case: str, runs: Any) -> None:
    run = runs(case)
    report = evaluate_checkpoint(run, episodes=1, deterministic=True)
    policy = load_policy(run)
    assert policy.observation_space == CASES[case].observation
    assert policy.action_space == CASES[case].action
    seed = copy_seeds(policy.config.evaluation.seed, 1)[0]
    assert play(policy, case, seed)[0] == pytest.approx(report["return_mean"], rel=1e-6)


def stacked(space: spaces.Space[Any], observations: list[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: stacked(part, [one[key] for one in observations]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(part, [one[place] for one in observations]) for place, part in enumerate(space.spaces))
    return np.stack([np.asarray(one) for one in observations])


@pytest.mark.parametrize("case", CASES)
def test_a_batch_gets_the_actions_and_values_of_its_observations(case: str, runs: Any) -> None:
    policy, space = load_policy(runs(case)), CASES[case].observation
    space.seed(3)
    observations = [space.sample() for _ in range(5)]
    masks: Any = None
    if CASES[case].action_mask == "mask":
        for one in observations:
            one["mask"] = np.array([0, 1, 1, 0, 1], np.int8)
    elif CASES[case].action_mask is not None:
        masks = np.array([[1, 0, 0, 1, 1]] * 5)
    states = np.random.default_rng(1).normal(0, 0.3, policy.initial_state(5).shape).astype(np.float32)
    batch = stacked(space, observations)
    actions, following = policy.act(batch, state=states, action_mask=masks)
    assert following.shape == states.shape
    values = policy.value(batch, state=states)
    for index, one in enumerate(observations):
        mask = None if masks is None else masks[index]
        action, after = policy.act(one, state=states[index], action_mask=mask)
        np.testing.assert_allclose(action, actions[index], rtol=1e-5, atol=1e-6)
        assert policy.action_space.contains(action)
        np.testing.assert_allclose(after, following[index], atol=1e-5)
        assert policy.value(one, state=states[index]) == pytest.approx(values[index], abs=1e-5)
    drawn, _ = policy.act(batch, state=states, action_mask=masks, deterministic=False)
    assert all(policy.action_space.contains(drawn[index : index + 1].squeeze(0)) for index in range(5))


def test_sampled_actions_are_those_of_the_distribution_and_follow_torchs_seed(runs: Any) -> None:
    policy = load_policy(runs("vector"))
    observations = np.zeros((4000, 5), np.float32)
    torch.manual_seed(5)
    actions = policy.act(observations, deterministic=False)
    torch.manual_seed(5)
    assert (policy.act(observations, deterministic=False) == actions).all()
    parameters = policy.module.action_parameters(torch.zeros(1, 5))[0]
    shares = np.bincount(actions, minlength=4) / len(actions)
    np.testing.assert_allclose(shares, parameters.softmax(-1).numpy(), atol=0.05)


def test_what_it_is_given_is_not_changed_and_may_be_read_only(runs: Any) -> None:
    policy = load_policy(runs("normalized"))
    observation = np.linspace(-2, 2, 5, dtype=np.float32)
    before = observation.copy()
    observation.flags.writeable = False
    first = policy.act(observation)
    assert (observation == before).all()
    assert policy.act(observation) == first
    assert policy.act(observation[::-1][::-1]) == first
    assert policy.act(observation.tolist()) == first
    assert policy.act(observation.astype(np.float64)) == first


VECTOR = np.zeros(5, np.float32)


@pytest.mark.parametrize(
    ("case", "observation", "message"),
    [
        ("vector", np.zeros(4), r"as the observation an array of shape \[4\], expected \[5\]; pass observations as"),
        ("vector", np.zeros((3, 4)), r"an array of shape \[3, 4\], expected \[3, 5\]"),
        ("vector", np.zeros((2, 3, 5)), r"an array of shape \[2, 3, 5\], expected \[5\], or a batch of those \[n, 5\]"),
        ("vector", 0.5, r"an array of shape \[\], expected \[5\]"),
        ("vector", ["a"] * 5, r"a list of str, expected float32 of shape \[5\]"),
        ("vector", {"left": VECTOR}, r"a dict, expected float32 of shape \[5\]"),
        ("vector", None, r"None, expected float32 of shape \[5\]"),
        ("vector", np.array([0, 0, np.nan, 0, 0]), r"given nan in the observation, expected finite numbers"),
        ("vector", np.array([0, 0, np.inf, 0, 0]), r"given inf in the observation, expected finite numbers"),
        ("vector", np.full(5, 1e300), "1e.300, which is finite, but beyond what float32 can hold"),
        ("number", 2, r"given 2 in the observation, expected 3 to 8"),
        ("number", 3.5, r"float64 where int64 is expected"),
        ("image", np.zeros((36, 40, 3)), r"float64 where uint8 is expected"),
        ("nested", VECTOR, r"a ndarray as the observation, expected a dict"),
        ("nested", {"eyes": {}}, r"an observation without the keys \['about', 'bits', 7\]"),
        ("masked", {"place": VECTOR, "mask": np.zeros(5, np.int8)}, "an action mask that forbids all 5 choices"),
        ("masked by infos", VECTOR, r"no action mask.*pass action_mask=info\['mask'\]"),
        ("memory", VECTOR, r"has memory and was given no state: pass state=policy.initial_state\(\)"),
        ("memory", np.zeros((3, 5)), r"pass state=policy.initial_state\(3\)"),
    ],
)
def test_what_is_no_observation_is_refused_with_what_was_expected(
    case: str, observation: Any, message: str, runs: Any
) -> None:
    with pytest.raises(WrongObservation, match=message):
        load_policy(runs(case)).act(observation)


def test_parts_of_a_batch_of_different_lengths_are_refused(runs: Any) -> None:
    policy = load_policy(runs("image and vector"))
    with pytest.raises(WrongObservation, match=r"of key 'place' an array of shape \[2, 5\], expected \[3, 5\]"):
        policy.act({"image": np.zeros((3, 36, 40, 3), np.uint8), "place": np.zeros((2, 5), np.float32)})


def test_states_and_masks_that_are_none_for_the_policy_are_refused(runs: Any) -> None:
    with_memory, without = load_policy(runs("memory")), load_policy(runs("vector"))
    assert with_memory.recurrent
    assert with_memory.initial_state().shape == (16,)
    assert not with_memory.initial_state(3).any()
    assert without.initial_state(2).shape == (2, 0)
    with pytest.raises(WrongObservation, match=r"a state that is an array of shape \[16\], expected \[2, 16\]"):
        with_memory.act(np.zeros((2, 5)), state=with_memory.initial_state())
    with pytest.raises(WrongObservation, match=r"a state that is an array of shape \[3\], expected \[0\]"):
        without.act(VECTOR, state=np.zeros(3, np.float32))
    numbers = (
        np.zeros(16, complex),
        np.full(16, np.nan, np.float32),
        np.full(16, 1e300),
        torch.ones(16).requires_grad_(),
    )
    odd = [[1.0], [1.0, 2.0]], ["a"] * 16, *numbers
    for state in odd:
        for use in (with_memory.act, with_memory.value):
            with pytest.raises(WrongObservation, match=r"was given a state that is .*initial_state\(\)"):
                use(np.zeros(5), state=state)  # type: ignore[call-overload]
    with pytest.raises(WrongObservation, match="was given an action mask, but was trained without"):
        without.act(VECTOR, action_mask=[1, 1, 1, 1])
    observed = load_policy(runs("masked"))
    with pytest.raises(WrongObservation, match="besides the one in the observation"):
        observed.act({"place": VECTOR, "mask": np.ones(5, np.int8)}, action_mask=np.ones(5))
    by_info = load_policy(runs("masked by infos"))
    with pytest.raises(WrongObservation, match="2 action masks for 3 observations"):
        by_info.act(np.zeros((3, 5)), action_mask=np.ones((2, 5)))
    with pytest.raises(WrongObservation, match="0 action masks for 3 observations"):
        by_info.act(np.zeros((3, 5)), action_mask=1)


def test_weights_that_give_no_numbers_are_an_error_and_not_an_action(runs: Any) -> None:
    policy = load_policy(runs("vector"))
    next(iter(policy.module.network.parameters())).fill_(float("nan"))
    with pytest.raises(PolicyFailed, match=r"the policy gave \[nan, nan, nan, nan\]: no action can be drawn"):
        policy.act(VECTOR)


def without_file(checkpoint: Path, name: str) -> None:
    """As an earlier release wrote it."""
    manifest = dict(open_checkpoint(checkpoint).manifest)
    manifest["files"] = {file: about for file, about in manifest["files"].items() if file != name}
    (checkpoint / name).unlink()
    (checkpoint / "manifest.json").write_bytes(in_folder(manifest, None))


def test_a_checkpoint_without_spaces_needs_those_of_the_environment_or_one_more_epoch(tmp_path: Path) -> None:
    config = config_of("squashed", tmp_path)
    anyio.run(Trainer(config).run)
    checkpoint = CheckpointFolder(tmp_path / "checkpoints").newest_valid().path
    action = load_policy(tmp_path).act(VECTOR)
    without_file(checkpoint, "spaces.json")
    with pytest.raises(CheckpointError, match=r"resume the run for one epoch.*or pass those of the environment"):
        load_policy(tmp_path)
    environment = make("squashed")
    own = environment.observation_space, environment.action_space
    assert load_policy(tmp_path, spaces=own).act(VECTOR).tolist() == action.tolist()
    with pytest.raises(CheckpointError, match=r"cannot act on Box.*give those of the environment that the policy was"):
        load_policy(tmp_path, spaces=(spaces.Box(-1.0, 1.0, (3,)), environment.action_space))
    longer = replace(config, total_agent_steps=config.total_agent_steps + 128)
    anyio.run(Trainer(longer, resume=tmp_path).run)
    assert load_policy(tmp_path).action_space == environment.action_space


def test_the_environment_and_its_package_are_not_needed(tmp_path: Path) -> None:
    package = tmp_path / "left_behind.py"
    package.write_text(f"import sys; sys.path.insert(0, {str(PROJECT)!r})\nfrom tests.used_environments import make\n")
    train = ["train", "--environment", "left_behind:make", "--collection.environment-options", "case=nested"]
    train += ["--total-agent-steps", "256", "--collection.num-environments", "4", "--collection.horizon", "32"]
    run = [sys.executable, "-m", "orchestrator", *train, "--run-dir", "run"]
    environment = {"PYTHONPATH": str(PROJECT), "PATH": ""}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    package.unlink()
    lines = ["import sys, orchestrator", "policy = orchestrator.load_policy('run')", "space = policy.observation_space"]
    lines += ["space.seed(1)", "print(policy.action_space.contains(policy.act(space.sample())))"]
    lines += ["print(*({'tyro', 'anyio', 'obstore', 'rich', 'orchestrator.trainer'} & sys.modules.keys()))"]
    command = [sys.executable, "-c", "\n".join(lines)]
    used = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert used.stdout.splitlines() == ["True", ""], used.stderr


def test_settings_from_elsewhere_run_no_network_of_their_own_and_need_no_trust_for_the_rest(
    tmp_path: Path, runs: Any
) -> None:
    address = runs("vector").as_uri()  # whose settings name an environment
    assert load_policy(address).act(VECTOR) in range(4)
    address = runs("own").as_uri()
    with pytest.raises(ConfigurationError, match=r"policy.network(.|\n)*--trust-code \(trust_code=True in code\)"):
        load_policy(address)
    assert load_policy(address, trust_code=True).act(VECTOR) in range(4)
    assert load_policy(runs("own")).act(VECTOR) in range(4)


def test_a_run_in_an_object_store_is_loaded_by_its_address(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    from orchestrator.checkpoints.objects import Objects
    from orchestrator.checkpoints.remote import RemoteCheckpoints

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    address = "memory://used/runs/first"
    RemoteCheckpoints(Objects(address)).upload(find_checkpoint(runs("vector")).path)
    assert load_policy(address).act(VECTOR) == load_policy(runs("vector")).act(VECTOR)


def test_a_network_that_cannot_be_had_is_named(runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs("own")
    monkeypatch.setattr("tests.small_networks.make_shared", None)
    with pytest.raises((NetworkError, OwnCodeError), match="make_shared"):
        load_policy(run)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "3", '{"observation": {"type": "Text"}, "action": 1}', '{"observation": {"type": "Box"}}'],
)
def test_spaces_that_another_program_wrote_wrong_are_named_with_the_cure(
    content: str, runs: Any, tmp_path: Path
) -> None:
    saved = find_checkpoint(runs("vector"))
    files = {name: saved.read(name) for name in saved.manifest["files"]} | {"spaces.json": content.encode()}
    facts = {name: saved.manifest[name] for name in ("agent_step", "policy_version", "resumable")}
    checkpoint = CheckpointFolder(tmp_path).commit(epoch=2, facts=facts, files=files)
    with pytest.raises(CheckpointError, match=r"spaces.json is damaged: .*; name another checkpoint"):
        load_policy(checkpoint)


def test_threads_share_a_policy(runs: Any) -> None:
    policy = load_policy(runs("memory"))
    space = policy.observation_space
    space.seed(2)
    observations = [space.sample() for _ in range(50)]

    def episode() -> list[int]:
        state, actions = policy.initial_state(), []
        for observation in observations:
            action, state = policy.act(observation, state=state)
            actions.append(int(action))
        return actions

    expected, found = episode(), list[list[int]]()
    threads = [threading.Thread(target=lambda: found.append(episode())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert found == [expected] * 6


def test_a_fork_acts_as_its_parent(runs: Any) -> None:
    program = f"""
import os, numpy as np, torch, orchestrator
torch.set_num_threads(2)
policy = orchestrator.load_policy({str(runs("vector"))!r})
observations = np.random.default_rng(1).normal(size=(20_000, 5)).astype(np.float32)
actions = policy.act(observations)
child = os.fork()
if not child:
    same = (policy.act(observations) == actions).all() and policy.act(observations[0]) == actions[0]
    os._exit(0 if same else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True, timeout=100)


class Colour(str):
    """Text of another type."""


@pytest.mark.parametrize(
    "space",
    [
        *(case.observation for case in CASES.values()),
        *(case.action for case in CASES.values()),
        spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
        spaces.Box(np.array([0.1, -np.inf]), np.array([np.inf, 1e300]), dtype=np.float64),
        spaces.Box(np.full(2, -0.1, np.float16), np.full(2, 0.3, np.float16), dtype=np.float16),
        spaces.Box(0, 2**64 - 1, (2,), np.uint64),
        spaces.Box(-(2**63), 2**63 - 1, (), np.int64),
        spaces.Box(0.0, 1.0, (0, 3)),
        spaces.Discrete(2, start=-(2**40)),
        spaces.MultiDiscrete(np.array([[2, 3]], np.uint8), np.uint8),
        spaces.MultiBinary((2, 3)),
        spaces.Tuple([]),
        spaces.Dict({(1, "a"): spaces.Discrete(2), Colour("red"): spaces.Discrete(3), 1.5: spaces.Tuple([])}),
    ],
    ids=str,
)
def test_spaces_are_recorded_as_json_and_come_back_equal(space: gymnasium.Space[Any]) -> None:
    again = space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False)))
    assert again == space
    assert type(again) is type(space)
    assert again.dtype == space.dtype
    if isinstance(space, spaces.Dict):
        assert list(again.spaces) == list(space.spaces)


def test_keys_that_json_cannot_say_do_not_keep_a_run_from_its_checkpoints() -> None:
    space = spaces.Dict({frozenset({1}): spaces.Discrete(2)})
    recorded = recorded_spaces(space, spaces.Discrete(2))
    assert "frozenset({1})" in recorded["problem"]
