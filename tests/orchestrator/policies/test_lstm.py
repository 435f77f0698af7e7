"""The recurrent network: resets are exact, all ways of running it agree, and its gradient is the right one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from orchestrator.policies import Policy, Spaces
from orchestrator.policies.lstm import LSTM
from orchestrator.policies.lstm_scan import lstm_scan

SPACES = Spaces(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(4))
BATCH, TIME = 5, 23


def starts(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    episode_start = torch.zeros(BATCH, TIME, dtype=torch.bool)
    if kind == "first":
        episode_start[:3, 0] = True
    elif kind == "some":
        episode_start = torch.rand(BATCH, TIME, generator=generator) < 0.15
    elif kind == "all":
        episode_start[:] = True
    return episode_start


def stepped(network: nn.Module, observation: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, ...]:
    """One call per step and per environment, with the state zeroed by hand."""
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for row in range(len(observation)):
        carried = state[row : row + 1]
        parameters: list[Tensor] = []
        values: list[Tensor] = []
        for step in range(observation.shape[1]):
            if episode_start[row, step]:
                carried = torch.zeros_like(carried)
            no_start = torch.zeros(1, 1, dtype=torch.bool)
            p, v, carried = network(observation[row : row + 1, step : step + 1], carried, no_start)
            parameters.append(p[0, 0])
            values.append(v[0, 0])
        rows.append((torch.stack(parameters), torch.stack(values), carried[0]))
    return tuple(torch.stack(part) for part in zip(*rows, strict=True))


@pytest.mark.parametrize("kind", ["none", "first", "some", "all"])
def test_a_segment_at_once_is_the_same_as_step_by_step_with_the_state_zeroed_at_episode_starts(kind: str) -> None:
    network = LSTM(SPACES, hidden_sizes=(16,), lstm_size=8)
    observation, state = torch.randn(BATCH, TIME, 3), torch.randn(BATCH, 16)
    episode_start = starts(kind)
    at_once = network(observation, state, episode_start)
    one_by_one = stepped(network, observation, state, episode_start)
    for ours, expected in zip(at_once, one_by_one, strict=True):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "first", "some", "all"])
def test_a_segment_at_once_has_the_gradient_of_step_by_step(kind: str) -> None:
    network = LSTM(SPACES, hidden_sizes=(16,), lstm_size=8)
    observation, state = torch.randn(BATCH, TIME, 3), torch.randn(BATCH, 16)
    episode_start = starts(kind)
    gradients: list[tuple[Tensor, ...]] = []
    for outputs in (
        network(observation, state, episode_start),
        stepped(network, observation, state, episode_start),
    ):
        loss = torch.stack([output.square().sum() for output in outputs]).sum()
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_nothing_before_an_episode_start_reaches_what_comes_after() -> None:
    network = LSTM(SPACES, lstm_size=8)
    observation, state = torch.randn(2, 6, 3), torch.randn(2, 16)
    episode_start = torch.zeros(2, 6, dtype=torch.bool)
    episode_start[:, 3] = True
    before = network(observation, state, episode_start)
    observation[:, :3] += 1.0
    after = network(observation, state + 1.0, episode_start)
    assert torch.equal(before[0][:, 3:], after[0][:, 3:])
    assert torch.equal(before[1][:, 3:], after[1][:, 3:])
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[0][:, :3], after[0][:, :3])


def test_the_scan_has_the_gradient_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).sub_(0.5).requires_grad_()

    keep = (torch.rand(4, 3, 1, generator=generator) < 0.7).double()
    arguments = (uniform(4, 3, 8), uniform(3, 2), uniform(3, 2), uniform(8, 2))
    assert torch.autograd.gradcheck(lambda *tensors: lstm_scan(*tensors, keep), arguments)


def test_the_scan_without_resets_is_torchs_lstm() -> None:
    reference = nn.LSTM(3, 4, dtype=torch.float64)
    x = torch.randn(7, 5, 3, dtype=torch.float64)
    hidden, cell = torch.randn(2, 5, 4, dtype=torch.float64).unbind(0)
    expected, (last_hidden, last_cell) = reference(x, (hidden[None], cell[None]))
    projected = nn.functional.linear(x, reference.weight_ih_l0, reference.bias_ih_l0 + reference.bias_hh_l0)
    keep = torch.ones(7, 5, 1, dtype=torch.float64)
    outputs, hidden, cell = lstm_scan(projected, hidden, cell, reference.weight_hh_l0, keep)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(hidden, last_hidden[0])
    torch.testing.assert_close(cell, last_cell[0])


@pytest.mark.parametrize("kind", ["none", "some"])
def test_a_policy_evaluates_a_segment_as_it_acted_in_it(kind: str) -> None:
    policy = Policy(SPACES, LSTM(SPACES, lstm_size=8))
    assert policy.recurrent
    assert policy.state_size == 16
    observation, episode_start = torch.randn(BATCH, TIME, 3), starts(kind)
    first = state = torch.randn(BATCH, policy.state_size)
    noise = policy.distribution.noise((TIME, BATCH))
    actions: list[Tensor] = []
    log_probs: list[Tensor] = []
    with torch.inference_mode():
        for step in range(TIME):
            parameters, _, state = policy(observation[:, step : step + 1], state, episode_start[:, step : step + 1])
            actions.append(policy.distribution.sample(parameters[:, 0], noise[step]))
            log_probs.append(policy.distribution.log_prob(parameters[:, 0], actions[-1]))
    evaluation = policy.evaluate(observation, torch.stack(actions, 1), first, episode_start)
    torch.testing.assert_close(evaluation.log_prob, torch.stack(log_probs, 1).clone(), rtol=0, atol=1e-6)
    assert evaluation.value.shape == evaluation.entropy.shape == (BATCH, TIME)
    assert evaluation.action_parameters.shape == (BATCH, TIME, 4)
    evaluation.log_prob.sum().backward()


def test_a_policy_without_a_given_state_begins_with_zeros() -> None:
    policy = Policy(SPACES, LSTM(SPACES, lstm_size=8))
    observation = torch.randn(2, 6, 3)
    parameters, value, state = policy(observation)
    start = torch.zeros(2, 6, dtype=torch.bool)
    start[:, 0] = True
    expected = policy(observation, torch.randn(2, 16), start)
    for ours, theirs in zip((parameters, value, state), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_images_and_dicts_can_be_remembered_too() -> None:
    space = spaces.Dict({"camera": spaces.Box(0, 255, (8, 8, 3), np.uint8), "speed": spaces.Box(-1.0, 1.0, (2,))})
    for observed, observation in (
        (space, {"camera": torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8), "speed": torch.randn(2, 4, 2)}),
        (space["camera"], torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8)),
        (spaces.Discrete(3), torch.zeros(2, 4, dtype=torch.int64)),
    ):
        network = LSTM(Spaces(observed, spaces.Box(-1.0, 1.0, (2,))), lstm_size=8)
        parameters, value, state = network(observation, torch.zeros(2, 16), torch.zeros(2, 4, dtype=torch.bool))
        assert parameters.shape == (2, 4, 4)
        assert value.shape == (2, 4)
        assert state.shape == (2, 16)
