"""The running statistics against numpy in float64 over all the data at once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces

from orchestrator.policies import ObservationNormalizer, RewardNormalizer, RunningNormalizer
from tests.orchestrator.policies.one_buffer import point_to_views_of_one_buffer


def data(*shape: int, seed: int = 0, offset: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * scale + offset


@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_statistics_of_many_batches_are_those_of_all_data_at_once(shape: tuple[int, ...]) -> None:
    normalizer = RunningNormalizer(shape)
    batches = [data(5, size, *shape, seed=size, offset=size, scale=1 + size) for size in (1, 7, 30)]
    for batch in batches:
        normalizer.update(batch)
    rows = np.concatenate([batch.flatten(0, 1).double().numpy() for batch in batches])
    np.testing.assert_allclose(normalizer.mean.numpy(), rows.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(normalizer.variance.numpy(), rows.var(0), rtol=1e-5)
    assert normalizer.count.item() == len(rows)
    expected = np.clip((rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-8), -10, 10)
    np.testing.assert_allclose(normalizer(torch.from_numpy(rows).float()).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_mean_far_larger_than_the_deviations_loses_nothing_in_float32() -> None:
    normalizer = RunningNormalizer((2,))
    batches = [data(64, 32, 2, seed=seed, offset=1e5, scale=0.5) for seed in range(50)]
    for batch in batches:
        normalizer.update(batch)
    rows = torch.cat([batch.flatten(0, 1) for batch in batches]).double().numpy()
    np.testing.assert_allclose(normalizer.variance.numpy(), rows.var(0), rtol=1e-4)
    np.testing.assert_allclose(normalizer.mean.numpy(), rows.mean(0), atol=0.01)
    normalized = normalizer(torch.from_numpy(rows).float())
    torch.testing.assert_close(normalized.mean(0), torch.zeros(2), atol=0.02, rtol=0)
    torch.testing.assert_close(normalized.std(0), torch.ones(2), atol=0.01, rtol=0)


def test_data_that_moves_on_after_many_batches_is_still_followed() -> None:
    normalizer = RunningNormalizer(())
    first, then = data(200_000, offset=3e4), data(300, 100, offset=3e4 + 5, seed=1)
    normalizer.update(first)
    for batch in then:
        normalizer.update(batch)
    rows = torch.cat([first, then.flatten()]).double().numpy()
    np.testing.assert_allclose(normalizer.mean.item(), rows.mean(), atol=0.01)
    np.testing.assert_allclose(normalizer.variance.item(), rows.var(), rtol=1e-3)


def test_invalid_steps_do_not_count_whatever_they_hold() -> None:
    x = data(6, 50, 3, offset=2.0)
    valid = torch.rand(6, 50, generator=torch.Generator().manual_seed(1)) < 0.7
    kept = RunningNormalizer((3,))
    kept.update(x[valid])
    x[~valid] = torch.nan
    masked = RunningNormalizer((3,))
    masked.update(x, valid)
    torch.testing.assert_close(masked.mean, kept.mean)
    torch.testing.assert_close(masked.variance, kept.variance)
    assert masked.count.item() == int(valid.sum())


def test_a_batch_without_valid_steps_changes_nothing() -> None:
    normalizer = RunningNormalizer((3,))
    normalizer.update(data(4, 5, 3), torch.zeros(4, 5, dtype=torch.bool))
    x = data(2, 3)
    assert torch.equal(normalizer(x), x)
    normalizer.update(data(4, 5, 3))
    before = copy.deepcopy(normalizer.state_dict())
    normalizer.update(data(4, 5, 3), torch.zeros(4, 5, dtype=torch.bool))
    assert all(torch.equal(tensor, before[name]) for name, tensor in normalizer.state_dict().items())


def test_without_data_values_pass_unchanged_up_to_the_limit() -> None:
    normalizer = RunningNormalizer((2,), clip=3.0)
    assert normalizer(torch.tensor([[1.5, -100.0]])).tolist() == [[1.5, -3.0]]


def test_a_constant_becomes_zero() -> None:
    normalizer = RunningNormalizer((1,))
    x = torch.full((100, 1), 7.3)
    normalizer.update(x)
    assert normalizer(x).abs().max().item() < 1e-2


def test_buffers_are_float32_updated_in_place_and_restored_from_the_state_dict() -> None:
    normalizer = RunningNormalizer((3,))
    memory = point_to_views_of_one_buffer(normalizer)
    normalizer.update(data(10, 3, offset=1.0))
    assert {buffer.untyped_storage().data_ptr() for buffer in normalizer.buffers()} == {memory.data_ptr()}
    assert all(buffer.dtype == torch.float32 for buffer in normalizer.buffers())
    other = RunningNormalizer((3,))
    other.load_state_dict(normalizer.state_dict())
    for twin in (normalizer, other):
        twin.update(data(10, 3, seed=5))
    x = data(4, 3)
    assert torch.equal(other(x), normalizer(x))


def test_only_boxes_of_floats_are_normalized_in_a_dict() -> None:
    space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "joint.angles": spaces.Box(-1.0, 1.0, (2,)),
            "mode": spaces.Discrete(3),
        }
    )
    normalizer = ObservationNormalizer(space)
    observation = {
        "camera": torch.full((4, 5, 8, 8, 3), 9, dtype=torch.uint8),
        "joint.angles": data(4, 5, 2, offset=50.0, scale=3.0),
        "mode": torch.ones(4, 5, dtype=torch.int64),
    }
    valid = torch.ones(4, 5, dtype=torch.bool)
    normalizer.merge(normalizer.summary(observation, valid))
    result = normalizer(observation)
    assert result["camera"] is observation["camera"]
    assert result["mode"] is observation["mode"]
    torch.testing.assert_close(result["joint.angles"].mean((0, 1)), torch.zeros(2), atol=1e-4, rtol=0)
    assert observation["joint.angles"].mean() > 40
    assert list(result) == list(observation)


def test_an_image_alone_passes_unchanged() -> None:
    normalizer = ObservationNormalizer(spaces.Box(0, 255, (8, 8, 3), np.uint8))
    image = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    normalizer.merge(normalizer.summary(image))
    assert normalizer(image) is image


def naive_discounted_sums(
    reward: np.ndarray, end: np.ndarray, valid: np.ndarray, discount: float, carry: np.ndarray
) -> np.ndarray:
    sums = np.zeros_like(reward, dtype=np.float64)
    for segment in range(len(reward)):
        running = carry[segment]
        for step in range(reward.shape[1]):
            running = discount * running + (reward[segment, step] if valid[segment, step] else 0.0)
            sums[segment, step] = running
            if end[segment, step]:
                running = 0.0
        carry[segment] = running
    return sums


def test_rewards_are_divided_by_the_deviation_of_the_discounted_sums_of_all_batches() -> None:
    generator = np.random.default_rng(0)
    normalizer = RewardNormalizer(discount=0.9)
    carry = np.zeros(4)
    rows: list[np.ndarray] = []
    for _ in range(3):
        reward = generator.normal(2.0, 3.0, (4, 37)).astype(np.float32)
        end = generator.random((4, 37)) < 0.1
        # After an episode's end, some environments take a step to reset.
        valid = np.ones_like(end)
        valid[:, 1:] = ~(end[:, :-1] & (generator.random((4, 36)) < 0.5))
        end &= valid
        scaled = normalizer.update_and_scale(torch.tensor(reward), torch.tensor(end), torch.tensor(valid))
        rows.append(naive_discounted_sums(reward, end, valid, 0.9, carry)[valid])
        deviation = np.concatenate(rows).std()
        expected = np.where(valid, np.clip(reward / deviation, -10, 10), 0.0)
        np.testing.assert_allclose(scaled.numpy(), expected, rtol=1e-4)
    assert normalizer.carry is not None
    np.testing.assert_allclose(normalizer.carry.numpy(), carry, rtol=1e-5)


def test_a_batch_of_another_number_of_segments_is_refused() -> None:
    normalizer = RewardNormalizer(discount=0.9)
    none = torch.zeros(3, 5, dtype=torch.bool)
    normalizer.update_and_scale(torch.ones(3, 5), none)
    with pytest.raises(ValueError, match="2 segments cannot continue one of 3"):
        normalizer.update_and_scale(torch.ones(2, 5), none[:2])
    normalizer.carry = None
    normalizer.update_and_scale(torch.ones(2, 5), none[:2])


def test_a_segment_that_begins_an_episode_does_not_go_on_from_the_one_before() -> None:
    normalizers = [RewardNormalizer(discount=0.9) for _ in range(2)]
    none = torch.zeros(2, 5, dtype=torch.bool)
    begins = torch.tensor([True, False])
    for normalizer in normalizers:
        normalizer.update_and_scale(torch.ones(2, 5), none)
    normalizers[0].update_and_scale(torch.ones(2, 5), none, begins=begins)
    assert normalizers[1].carry is not None
    normalizers[1].carry[0] = 0.0
    normalizers[1].update_and_scale(torch.ones(2, 5), none)
    for buffer, expected in zip(normalizers[0].buffers(), normalizers[1].buffers(), strict=True):
        torch.testing.assert_close(buffer, expected)


def test_the_sum_under_way_is_not_part_of_the_policy() -> None:
    normalizer = RewardNormalizer(discount=0.9)
    normalizer.update_and_scale(torch.ones(3, 5), torch.zeros(3, 5, dtype=torch.bool))
    assert not [name for name in normalizer.state_dict() if "carry" in name]
