"""The numpy way of acting on few observations takes the actions that the policy takes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from orchestrator import PolicyConfig
from orchestrator.policies import Policy, Spaces, build_policy
from orchestrator.policies.greedy_actor import GreedyActor, greedy_actor

BOX, CHOICE = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(4)
VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float32)


def policy_of(action: gymnasium.Space[Any], observed: gymnasium.Space[Any] = VECTOR, **settings: Any) -> Policy:
    config = PolicyConfig(**{"hidden_sizes": (16, 8), **settings})
    policy = build_policy(config, Spaces(observed, action), seed=3).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for parameter in policy.parameters():  # biases, too
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    if policy.observation_normalizer is not None:
        seen = 3.0 + 2.0 * torch.randn(1, 50, 5, generator=generator)
        policy.merge_observations(policy.observation_summary(seen))
    return policy


def actor_of(policy: Policy) -> GreedyActor:
    actor = greedy_actor(policy)
    assert actor is not None
    return actor


@pytest.mark.parametrize("action", [BOX, CHOICE], ids=["numbers", "choice"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalize_observations": False},
        {"activation": "relu"},
        {"activation": "silu"},
        {"hidden_sizes": (7,)},
    ],
)
def test_few_observations_get_the_policys_most_likely_actions(
    action: gymnasium.Space[Any], settings: dict[str, Any]
) -> None:
    policy = policy_of(action, **settings)
    actor = actor_of(policy)
    # Some of them beyond the normalizer's limit.
    observations = np.random.default_rng(1).normal(3.0, 9.0, (400, 5)).astype(np.float32)
    expected = policy.distribution.mode(policy.action_parameters(torch.from_numpy(observations.copy()))).numpy()
    assert len(np.unique(expected)) > 1
    before = observations.copy()
    for count in (1, 3, 8):
        found = [actor(observations[begin : begin + count]) for begin in range(0, 400, count)]
        actions = np.concatenate([one for one in found if one is not None])
        assert actions.dtype == expected.dtype
        np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
    assert (observations == before).all()


def test_weights_that_are_written_count_at_once() -> None:
    policy = policy_of(BOX)
    actor, observation = actor_of(policy), np.ones((1, 5), np.float32)
    before = actor(observation)
    for parameter in policy.network.get_submodule("actor").parameters():
        parameter.zero_()
    assert before is not None
    assert before.any()
    after = actor(observation)
    assert after is not None
    assert not after.any()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("name", ["network.actor.weight_2", "network.actor.bias_2", "network.head.log_std"])
def test_numbers_that_may_make_no_distribution_are_left_to_the_policy(name: str, number: float) -> None:
    policy = policy_of(BOX, activation="relu")
    actor = actor_of(policy)
    policy.get_parameter(name).fill_(number)
    with np.errstate(all="raise"):
        assert actor(np.ones((1, 5), np.float32)) is None


def test_many_observations_and_other_policies_are_left_to_torch() -> None:
    assert actor_of(policy_of(BOX))(np.ones((9, 5), np.float32)) is None
    assert greedy_actor(policy_of(BOX, hidden_sizes=(512, 512))) is None
    assert greedy_actor(policy_of(BOX, network="lstm", lstm_size=8)) is None
    assert greedy_actor(policy_of(spaces.MultiDiscrete([2, 3]))) is None
    assert greedy_actor(policy_of(BOX, spaces.Discrete(5), normalize_observations=False)) is None
