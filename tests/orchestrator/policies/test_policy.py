"""The policy as a whole: evaluation, seeds, memory that belongs to others, and normalization."""

from __future__ import annotations

import copy
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from orchestrator.config.settings import PolicyConfig
from orchestrator.policies import Observation, Policy, Spaces, build_policy
from tests.orchestrator.policies.one_buffer import point_to_views_of_one_buffer

SPACES = Spaces(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(4))
IMAGES = Spaces(spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(4))
CONFIG = PolicyConfig(normalize_observations=False, normalize_rewards=False)


def bytes_of(policy: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in policy.state_dict().items()}


# Evaluation.


@pytest.mark.parametrize("network", ["mlp", "tests.small_networks:Shared"])
def test_evaluation_agrees_with_acting_and_has_gradients(network: str) -> None:
    policy = build_policy(replace(CONFIG, network=network), SPACES, seed=1)
    observation = torch.randn(6, 3)
    with torch.inference_mode():
        parameters, value, state = policy(observation)
        assert state is None
        assert torch.equal(policy.action_parameters(observation), parameters)
        assert torch.equal(policy.value(observation), value)
        action = policy.distribution.sample(parameters, policy.distribution.noise((6,)))
        log_prob = policy.distribution.log_prob(parameters, action)
    action = action.clone()
    evaluation = policy.evaluate(observation, action)
    assert torch.equal(evaluation.log_prob, log_prob)
    assert torch.equal(evaluation.value, value)
    assert torch.equal(evaluation.action_parameters, parameters)
    reference = torch.distributions.Categorical(logits=parameters.clone())
    torch.testing.assert_close(evaluation.entropy, reference.entropy())
    (evaluation.log_prob + evaluation.entropy + evaluation.value).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())


@pytest.mark.parametrize(
    "action", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.Box(-1.0, 1.0, (2,))], ids=str
)
def test_whole_segments_are_evaluated_as_their_steps_are(action: spaces.Space[object]) -> None:
    parts = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (3,)), "b": spaces.Discrete(2)})
    for observed in (SPACES.observation, parts):
        policy = build_policy(CONFIG, Spaces(observed, action), seed=1)
        vector = torch.randn(4, 5, 3)
        segments: Observation = vector
        steps: Observation = vector.flatten(0, 1)
        if observed is parts:
            choice = torch.zeros(4, 5, dtype=torch.int64)
            segments, steps = {"a": vector, "b": choice}, {"a": vector.flatten(0, 1), "b": choice.flatten(0, 1)}
        noise = policy.distribution.noise((20,))
        actions = policy.distribution.sample(policy.action_parameters(steps), noise).detach()
        flat = policy.evaluate(steps, actions)
        whole = policy.evaluate(segments, actions.unflatten(0, (4, 5)))
        for name in ("log_prob", "entropy", "value", "action_parameters"):
            assert torch.equal(getattr(whole, name), getattr(flat, name).unflatten(0, (4, 5))), name


def test_a_network_of_separate_parts_is_acted_with_by_one_of_them() -> None:
    policy = build_policy(CONFIG, SPACES, seed=1)
    assert policy.separate
    assert not build_policy(CONFIG, IMAGES, seed=1).separate
    assert not build_policy(replace(CONFIG, network="tests.small_networks:Shared"), SPACES, seed=1).separate


# Seeds and memory.


@pytest.mark.parametrize("network", ["mlp", "lstm", "cnn", "auto"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(network: str) -> None:
    config = replace(CONFIG, network=network)
    observed = IMAGES if network == "cnn" else SPACES
    torch.rand(3)
    first = build_policy(config, observed, seed=7)
    torch.rand(5)
    assert bytes_of(build_policy(config, observed, seed=7)) == bytes_of(first)
    assert bytes_of(build_policy(config, observed, seed=8)) != bytes_of(first)


@pytest.mark.parametrize("network", ["mlp", "lstm", "cnn"])
def test_the_number_of_threads_does_not_change_the_weights(network: str) -> None:
    config = replace(CONFIG, network=network)
    observed = IMAGES if network == "cnn" else SPACES
    threads = torch.get_num_threads()
    built: list[dict[str, bytes]] = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            built.append(bytes_of(build_policy(config, observed, seed=7)))
    finally:
        torch.set_num_threads(threads)
    assert built[0] == built[1]


def test_building_a_policy_disturbs_no_generator() -> None:
    observed = Spaces(spaces.Box(-1.0, 1.0, (3,), seed=3), spaces.Discrete(4, seed=3))
    samples = copy.deepcopy(observed)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    undisturbed = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    build_policy(CONFIG, observed, seed=1)
    assert torch.equal(torch.rand(3), undisturbed[0])
    assert (random.random(), np.random.rand()) == undisturbed[1:]
    assert np.array_equal(observed.observation.sample(), samples.observation.sample())


def test_policies_built_in_several_threads_have_the_weights_of_their_seeds() -> None:
    seeds = [1, 2, 3, 4] * 4
    with ThreadPoolExecutor(4) as threads:
        built = list(threads.map(lambda seed: bytes_of(build_policy(CONFIG, SPACES, seed)), seeds))
    for seed, weights in zip(seeds, built, strict=True):
        assert weights == bytes_of(build_policy(CONFIG, SPACES, seed))


@pytest.mark.parametrize("network", ["mlp", "lstm", "cnn"])
def test_a_policy_works_on_memory_that_belongs_to_somebody_else(network: str) -> None:
    config = replace(CONFIG, network=network, normalize_observations=True, normalize_rewards=True)
    observed = IMAGES if network == "cnn" else SPACES
    policy = build_policy(config, observed, seed=1)
    twin = build_policy(config, observed, seed=1)
    tensors = [*policy.parameters(), *policy.buffers()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    memory = point_to_views_of_one_buffer(policy)

    observation = torch.ones(2, 4, *(observed.observation.shape or ()))
    if network == "cnn":
        observation = observation.to(torch.uint8)
    valid = torch.ones(2, 4, dtype=torch.bool)
    action = torch.zeros(2, 4, dtype=torch.int64)
    for either in (policy, twin):
        either.merge_observations(either.observation_summary(observation, valid))
        assert either.reward_normalizer is not None
        either.reward_normalizer.update_and_scale(torch.randn(2, 4).abs_(), ~valid, valid)
        either.evaluate(observation, action).value.sum().backward()
    assert torch.equal(policy.evaluate(observation, action).value, twin.evaluate(observation, action).value)
    for tensor in (*policy.parameters(), *policy.buffers()):
        assert tensor.untyped_storage().data_ptr() == memory.data_ptr()
    memory.zero_()
    assert policy.evaluate(observation, action).value.abs().sum().item() == 0.0


def test_a_policy_can_be_pickled_and_copied() -> None:
    for network in ("mlp", "lstm"):
        policy = build_policy(replace(CONFIG, network=network, normalize_observations=True), SPACES, seed=1)
        for twin in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)):
            assert bytes_of(twin) == bytes_of(policy)
            observation = torch.randn(2, 1, 3) if twin.recurrent else torch.randn(2, 3)
            assert torch.equal(twin(observation)[0], policy(observation)[0])


# Normalization.


def test_statistics_change_only_when_asked_to_and_then_act_and_evaluate_alike() -> None:
    policy = build_policy(replace(CONFIG, normalize_observations=True), SPACES, seed=1)
    plain = build_policy(CONFIG, SPACES, seed=1)
    observation = torch.randn(4, 8, 3) * 3.0 + 20.0
    action = torch.zeros(4, 8, dtype=torch.int64)
    clipped = observation.clamp(-10.0, 10.0)
    assert torch.equal(policy.evaluate(observation, action).value, plain.evaluate(clipped, action).value)

    valid = torch.ones(4, 8, dtype=torch.bool)
    valid[:, -1] = False
    policy.merge_observations(policy.observation_summary(observation, valid))
    rows = observation[valid]
    normalized = (observation - rows.mean(0)) / rows.std(0, correction=0)
    expected = plain.evaluate(normalized, action)
    torch.testing.assert_close(policy.evaluate(observation, action).value, expected.value)
    steps = observation.flatten(0, 1)
    torch.testing.assert_close(policy.value(steps), expected.value.flatten())
    torch.testing.assert_close(policy.action_parameters(steps), expected.action_parameters.flatten(0, 1))
    torch.testing.assert_close(policy(steps)[0], expected.action_parameters.flatten(0, 1))


def test_statistics_are_part_of_the_state_dict() -> None:
    config = replace(CONFIG, normalize_observations=True, normalize_rewards=True)
    policy, other = (build_policy(config, SPACES, seed) for seed in (1, 2))
    policy.merge_observations(policy.observation_summary(torch.randn(4, 8, 3) + 5.0))
    other.load_state_dict(policy.state_dict())
    observation = torch.randn(2, 3)
    assert torch.equal(other(observation)[0], policy(observation)[0])


def test_normalizers_are_there_only_where_asked_for() -> None:
    policy = build_policy(CONFIG, SPACES, seed=1)
    assert policy.observation_normalizer is None
    assert policy.reward_normalizer is None
    policy.merge_observations(policy.observation_summary(torch.randn(4, 8, 3)))
    assert not list(policy.buffers())


def test_dict_observations_reach_an_own_network_by_their_keys() -> None:
    seen: list[dict[str, torch.Size]] = []

    class OwnDict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.critic = nn.Linear(2, 1)

        def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            seen.append({key: part.shape for key, part in observation.items()})
            return observation["a"].new_zeros(len(observation["a"]), 4), self.critic(observation["a"])

    observed = Spaces(spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": spaces.Discrete(3)}), spaces.Discrete(4))
    policy = Policy(observed, OwnDict())
    policy({"a": torch.zeros(5, 2), "b": torch.zeros(5, dtype=torch.int64)})
    assert seen == [{"a": torch.Size([5, 2]), "b": torch.Size([5])}]
