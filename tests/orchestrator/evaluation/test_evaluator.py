"""Evaluation plays exactly the episodes asked for, and scores them without bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.settings import PolicyConfig
from orchestrator.environments import VectorEnvironment, make_vector
from orchestrator.evaluation.evaluator import CUT, EvaluationInterrupted, evaluate
from orchestrator.policies.network import Spaces
from orchestrator.policies.policy import Policy, build_policy
from tests.small_networks import make_separate, make_shared

COUNTING = "tests.environments:make_counting"
KINDS = [
    (COUNTING, "sync"),
    ("tests.environments:Counting/SameStep-v0", "native"),
    ("tests.environments:Counting/NextStep-v0", "native"),
]
RECALL = "orchestrator.environments.memory:make"


class Remembering(nn.Module):
    """Answers with the cue that the episode began with."""

    def __init__(self, cues: int) -> None:
        super().__init__()
        self.state_size = cues

    def forward(self, observation: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = []
        for step in range(observation.shape[1]):
            state = state * ~episode_start[:, step, None] + observation[:, step, :-1]
            states.append(state)
        return 100.0 * torch.stack(states, dim=1), torch.zeros(observation.shape[:2]), state


def policy_for(environment: VectorEnvironment, make: Any = make_shared) -> Policy:
    spaces = Spaces(environment.observation_space, environment.action_space)
    torch.manual_seed(0)
    return Policy(spaces, make(spaces))


@pytest.mark.parametrize(("name", "mode"), KINDS)
@pytest.mark.parametrize("truncate", [True, False])
def test_every_copy_plays_its_share_however_long_its_episodes_are(name: str, mode: Any, truncate: bool) -> None:
    environment = make_vector(name, 4, {"lengths": (1, 30), "truncate": truncate}, mode)
    (scores,) = evaluate(policy_for(environment), [environment], episodes=6, seeds=[0])
    # Copies 0 and 1 play two episodes, 2 and 3 one: whoever ends first does not play more.
    assert scores.lengths == (1, 30, 1, 30, 1, 1)
    assert scores.returns == (1.0, 465.0, 1.0, 465.0, 1.0, 1.0)
    assert scores.mean_return == sum(scores.returns) / 6
    assert scores.environment == name
    assert scores.cut == 0


@pytest.mark.parametrize("episodes", [1, 2, 5, 12])
def test_exactly_as_many_episodes_as_asked_for_are_scored(episodes: int) -> None:
    environments = [make_vector("CartPole-v1", count) for count in (1, 4, 8)]
    for scores in evaluate(policy_for(environments[0], make_separate), environments, episodes, seeds=[1, 2, 3]):
        assert len(scores.returns) == len(scores.lengths) == episodes
        assert scores.returns == scores.lengths  # CartPole's reward is 1 a step


def test_the_same_seed_gives_the_same_scores_and_another_seed_others() -> None:
    environment = make_vector("CartPole-v1", 4)
    policy = policy_for(environment)

    def play(seed: int, deterministic: bool) -> tuple[float, ...]:
        return evaluate(policy, [environment], 12, [seed], deterministic)[0].returns

    for deterministic in (True, False):
        assert play(3, deterministic) == play(3, deterministic)
        assert play(3, deterministic) != play(4, deterministic)
    assert play(3, True) != play(3, False)


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_policy_with_memory_is_evaluated_with_its_memory(deterministic: bool) -> None:
    environment = make_vector(RECALL, 4, {"cues": 3})
    policy = policy_for(environment, lambda spaces: Remembering(3))
    (scores,) = evaluate(policy, [environment], 20, [0], deterministic)
    assert scores.returns == (1.0,) * 20


@pytest.mark.parametrize(("name", "mode"), KINDS)
def test_memory_is_forgotten_exactly_at_the_first_observation_of_an_episode(name: str, mode: Any) -> None:
    calls: list[tuple[Tensor, Tensor]] = []

    class Watching(Remembering):
        def forward(self, observation: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            calls.append((observation[:, 0, 0].clone(), episode_start[:, 0].clone()))
            return super().forward(torch.zeros(len(state), 1, 3), state, episode_start)

    environment = make_vector(name, 2, {"lengths": (2, 4)}, mode)
    evaluate(policy_for(environment, lambda spaces: Watching(2)), [environment], 8, [0])
    assert calls
    for observation, episode_start in calls:
        assert episode_start.tolist() == (observation == 0).tolist()  # Counting observes the steps that were made


def test_episodes_that_do_not_end_are_cut_and_reported() -> None:
    environment = make_vector(COUNTING, 2, {"lengths": (3, 1000)})
    told: list[str] = []
    (scores,) = evaluate(policy_for(environment), [environment], 8, [0], tell=told.append, limit=10)
    assert not told
    assert "had not ended 2 episodes of the evaluation after 10 agent steps" in scores.warnings[CUT]
    assert "and only 4 of 8 episodes were played; set max_episode_steps where" in scores.warnings[CUT]
    assert scores.lengths == (3, 10, 3, 10)
    assert scores.returns == (6.0, 55.0, 6.0, 55.0)
    assert scores.cut == 2


def test_stop_is_asked_before_every_step() -> None:
    environment = make_vector(COUNTING, 2, {"lengths": (1000,)})
    answers = iter([False] * 5 + [True])
    with pytest.raises(EvaluationInterrupted):
        evaluate(policy_for(environment), [environment], 2, [0], stop=lambda: next(answers))
    assert next(answers, None) is None


def test_no_episodes_are_refused() -> None:
    environment = make_vector(COUNTING, 2)
    with pytest.raises(ValueError, match="episodes is 0"):
        evaluate(policy_for(environment), [environment], 0, [0])


@pytest.mark.parametrize("deterministic", [True, False])
def test_normalisation_is_used_as_it_is_and_rewards_are_the_environment_s_own(deterministic: bool) -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(observation.clone())
            return torch.zeros(len(observation), 2), torch.zeros(len(observation))

    environment = make_vector(COUNTING, 2, {"lengths": (3, 5)})
    spaces = Spaces(environment.observation_space, environment.action_space)
    policy = Policy(spaces, Watching(), normalize_observations=True, normalize_rewards=True)
    assert policy.reward_normalizer is not None
    policy.merge_observations(policy.observation_summary(torch.tensor([[[1.0], [2.0], [3.0]]])))
    policy.reward_normalizer.update_and_scale(torch.tensor([[100.0, -100.0]]), torch.zeros(1, 2, dtype=torch.bool))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    (scores,) = evaluate(policy, [environment], 4, [0], deterministic)
    assert scores.returns == (6.0, 15.0, 6.0, 15.0)
    torch.testing.assert_close(seen[0], torch.full((2, 1), -2.0 / (2.0 / 3.0) ** 0.5), rtol=1e-4, atol=0)
    after = policy.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_network_with_an_lstm_plays_every_episode_as_if_it_were_its_first() -> None:
    environment = make_vector(COUNTING, 1, {"lengths": (4,)})
    spaces = Spaces(environment.observation_space, environment.action_space)
    policy = build_policy(PolicyConfig(network="lstm", hidden_sizes=(8,), lstm_size=8), spaces, seed=1)
    outputs: list[Tensor] = []
    policy.network.register_forward_hook(lambda module, inputs, output: outputs.append(output[0][0, 0].clone()))
    evaluate(policy, [environment], 3, [0])
    first, second, third = (torch.stack(outputs[begin : begin + 4]) for begin in (0, 4, 8))
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    observation = torch.arange(4.0).view(4, 1, 1)
    without_memory, _, _ = policy(observation)
    assert not torch.allclose(first[1:], without_memory[1:, 0]), "within an episode it does remember"
