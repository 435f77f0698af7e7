"""The advantages against the papers' sums, written as float64 loops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.advantage import discounted_scan, gae, vtrace


@dataclass
class Segments:
    """Random segments as a collector records them; every array is [segments, horizon], float64 or bool."""

    log_ratio: np.ndarray
    reward: np.ndarray
    value: np.ndarray
    next_value: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray

    @property
    def episode_end(self) -> np.ndarray:
        return self.terminated | self.truncated

    def tensors(self, *names: str, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
        arrays = [getattr(self, name) for name in names]
        return [torch.tensor(a, dtype=None if a.dtype == bool else dtype) for a in arrays]


def random_segments(
    seed: int, count: int, horizon: int, *, end_chance: float = 0.15, reset_steps: bool = False
) -> Segments:
    rng = np.random.default_rng(seed)
    shape = (count, horizon)
    s = Segments(
        log_ratio=rng.normal(0.0, 0.7, shape),
        reward=rng.normal(size=shape),
        value=rng.normal(size=shape),
        next_value=rng.normal(size=shape),
        terminated=np.zeros(shape, bool),
        truncated=np.zeros(shape, bool),
        valid=np.ones(shape, bool),
    )
    for i in range(count):
        resetting = reset_steps and rng.random() < 0.2
        for t in range(horizon):
            if resetting:
                s.valid[i, t] = False
                # Whatever is recorded there must not matter.
                s.reward[i, t] = s.value[i, t] = s.log_ratio[i, t] = rng.choice([1e6, math.nan, math.inf])
                resetting = False
            elif rng.random() < end_chance:
                if rng.random() < 0.5:
                    s.terminated[i, t] = True
                    s.next_value[i, t] = 0.0
                else:
                    s.truncated[i, t] = True
                resetting = reset_steps
            elif t + 1 < horizon:
                s.next_value[i, t] = s.value[i, t + 1]
    return s


def rest_of_trajectory(s: Segments, i: int, t: int) -> range:
    """The steps from t to the end of its episode or of the segment."""
    end = t
    while not s.episode_end[i, end] and end + 1 < s.valid.shape[1]:
        end += 1
    return range(t, end + 1)


def naive_gae(s: Segments, discount: float, gae_lambda: float) -> np.ndarray:
    """Equation 16: the sum of (discount lambda)^l delta_{t+l}."""
    advantage = np.zeros(s.valid.shape)
    for i, t in np.argwhere(s.valid):
        for k in rest_of_trajectory(s, i, t):
            delta = s.reward[i, k] + discount * s.next_value[i, k] - s.value[i, k]
            advantage[i, t] += (discount * gae_lambda) ** (k - t) * delta
    return advantage


def naive_vtrace(
    s: Segments, discount: float, trace_lambda: float, rho_clip: float, c_clip: float
) -> tuple[np.ndarray, np.ndarray]:
    """Equation 1 and the advantage of section 4.2, on the values of the current policy."""
    advantage, target = np.zeros(s.valid.shape), np.where(s.valid, s.value, 0.0)

    def known_value_after(i: int, t: int) -> float:
        last = rest_of_trajectory(s, i, t)[-1] == t
        return s.next_value[i, t] if last else s.value[i, t + 1]

    for i, t in np.argwhere(s.valid):
        for k in rest_of_trajectory(s, i, t):
            rho = min(rho_clip, math.exp(s.log_ratio[i, k]))
            trace = math.prod(trace_lambda * min(c_clip, math.exp(s.log_ratio[i, j])) for j in range(t, k))
            delta = rho * (s.reward[i, k] + discount * known_value_after(i, k) - s.value[i, k])
            target[i, t] += discount ** (k - t) * trace * delta
    for i, t in np.argwhere(s.valid):
        last = rest_of_trajectory(s, i, t)[-1] == t
        target_after = s.next_value[i, t] if last else target[i, t + 1]
        rho = min(rho_clip, math.exp(s.log_ratio[i, t]))
        advantage[i, t] = rho * (s.reward[i, t] + discount * target_after - s.value[i, t])
    return advantage, target


@settings(deadline=None, max_examples=40)
@given(segments=st.integers(1, 5), horizon=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_the_scan_solves_the_recurrence_for_every_horizon(segments: int, horizon: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    delta = rng.normal(size=(segments, horizon))
    coefficient = rng.uniform(-1.1, 1.1, (segments, horizon)) * (rng.random((segments, horizon)) < 0.9)
    expected, after = np.zeros_like(delta), np.zeros(segments)
    for t in reversed(range(horizon)):
        after = expected[:, t] = delta[:, t] + coefficient[:, t] * after

    result = discounted_scan(torch.tensor(delta), torch.tensor(coefficient))

    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_the_scan_leaves_its_inputs_alone_and_has_no_gradient() -> None:
    delta = torch.randn(3, 9, requires_grad=True)
    coefficient = torch.rand(3, 9)
    before = delta.detach().clone(), coefficient.clone()

    result = discounted_scan(delta, coefficient)

    assert not result.requires_grad
    assert torch.equal(delta, before[0])
    assert torch.equal(coefficient, before[1])


@pytest.mark.parametrize("reset_steps", [False, True])
@pytest.mark.parametrize("end_chance", [0.0, 0.15, 0.7])
@pytest.mark.parametrize(("discount", "gae_lambda"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0)])
def test_gae_is_the_papers_sum(discount: float, gae_lambda: float, end_chance: float, reset_steps: bool) -> None:
    s = random_segments(7, 6, 33, end_chance=end_chance, reset_steps=reset_steps)
    arguments = s.tensors("reward", "value", "next_value", "episode_end", "valid")
    if not reset_steps:
        arguments[-1] = None

    advantage, returns = gae(*arguments, discount, gae_lambda)

    expected = naive_gae(s, discount, gae_lambda)
    np.testing.assert_allclose(advantage.numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(returns.numpy()[s.valid], (expected + s.value)[s.valid], rtol=1e-9, atol=1e-9)


def test_gae_at_an_invalid_step_is_zero() -> None:
    s = random_segments(3, 8, 40, end_chance=0.3, reset_steps=True)
    assert not s.valid.all()

    advantage, _ = gae(*s.tensors("reward", "value", "next_value", "episode_end", "valid"), 0.99, 0.95)

    assert advantage[torch.tensor(~s.valid)].eq(0.0).all()


def test_gae_bootstraps_at_a_truncation_and_not_at_a_termination() -> None:
    reward, value = torch.tensor([[1.0]]), torch.tensor([[0.25]])
    ended = torch.tensor([[True]])

    truncated, _ = gae(reward, value, torch.tensor([[10.0]]), ended, None, 0.5, 0.9)
    terminated, _ = gae(reward, value, torch.tensor([[0.0]]), ended, None, 0.5, 0.9)

    assert truncated.item() == 1.0 + 0.5 * 10.0 - 0.25
    assert terminated.item() == 1.0 - 0.25


def test_gae_is_accurate_in_float32_over_long_horizons() -> None:
    s = random_segments(11, 4, 1024, end_chance=0.002)
    names = ("reward", "value", "next_value", "episode_end")

    exact, _ = gae(*s.tensors(*names), None, 0.999, 0.99)
    rounded, _ = gae(*s.tensors(*names, dtype=torch.float32), None, 0.999, 0.99)

    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 2e-6 * exact.abs().max()


@pytest.mark.parametrize("reset_steps", [False, True])
@pytest.mark.parametrize("end_chance", [0.0, 0.15, 0.7])
@pytest.mark.parametrize(
    ("discount", "trace_lambda", "rho_clip", "c_clip"),
    [(0.99, 1.0, 1.0, 1.0), (0.9, 0.8, 2.0, 1.2), (1.0, 1.0, math.inf, 1.5)],
)
def test_vtrace_is_the_papers_sum(
    discount: float,
    trace_lambda: float,
    rho_clip: float,
    c_clip: float,
    end_chance: float,
    reset_steps: bool,
) -> None:
    s = random_segments(5, 6, 33, end_chance=end_chance, reset_steps=reset_steps)
    # The current policy's values are not the recorded ones.
    s.value += np.random.default_rng(1).normal(size=s.value.shape)
    arguments = s.tensors("log_ratio", "reward", "value", "next_value", "episode_end", "valid")
    if not reset_steps:
        arguments[-1] = None

    advantage, target = vtrace(*arguments, discount, trace_lambda=trace_lambda, rho_clip=rho_clip, c_clip=c_clip)

    expected_advantage, expected_target = naive_vtrace(s, discount, trace_lambda, rho_clip, c_clip)
    np.testing.assert_allclose(advantage.numpy(), expected_advantage, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(target.numpy()[s.valid], expected_target[s.valid], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_vtrace_on_policy_is_gae_with_lambda_one() -> None:
    # Equation 2 of the paper: where both policies are one, the target is the n-step Bellman target.
    s = random_segments(2, 5, 50)
    s.log_ratio[:] = 0.0
    names = ("reward", "value", "next_value", "episode_end")

    _, target = vtrace(*s.tensors("log_ratio", *names), None, 0.97)
    _, returns = gae(*s.tensors(*names), None, 0.97, 1.0)

    torch.testing.assert_close(target, returns)


def test_vtrace_stays_finite_for_ratios_that_overflow() -> None:
    s = random_segments(4, 3, 20)
    s.log_ratio[1, 3] = 1e4

    results = vtrace(
        *s.tensors("log_ratio", "reward", "value", "next_value", "episode_end", dtype=torch.float32), None, 0.99
    )

    assert all(result.isfinite().all() for result in results)
