"""Observations of every kind as vectors."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from orchestrator.policies import NetworkError
from orchestrator.policies.flatten import FlatObservation


def test_a_vector_of_float32_is_passed_on_without_a_copy() -> None:
    flatten = FlatObservation(spaces.Box(-1.0, 1.0, (3,)))
    x = torch.randn(4, 3)
    assert flatten.identity
    assert flatten(x) is x


@pytest.mark.parametrize(
    ("space", "observation", "expected"),
    [
        (spaces.Box(-1.0, 1.0, (2, 2)), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), [[1.0, 2.0, 3.0, 4.0]]),
        (spaces.Box(0, 255, (2,), np.uint8), torch.tensor([[0, 255]], dtype=torch.uint8), [[0.0, 1.0]]),
        (spaces.Box(-9, 9, (), np.int32), torch.tensor([-3], dtype=torch.int32), [[-3.0]]),
        (spaces.Discrete(3), torch.tensor([2, 0]), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
        (spaces.Discrete(3, start=-1), torch.tensor([-1]), [[1.0, 0.0, 0.0]]),
        (spaces.MultiDiscrete([2, 3]), torch.tensor([[1, 2]]), [[0.0, 1.0, 0.0, 0.0, 1.0]]),
        (spaces.MultiDiscrete([[2], [2]]), torch.tensor([[[1], [0]]]), [[0.0, 1.0, 1.0, 0.0]]),
        (spaces.MultiBinary(3), torch.tensor([[1, 0, 1]], dtype=torch.int8), [[1.0, 0.0, 1.0]]),
    ],
)
def test_each_kind_of_observation_becomes_its_vector(
    space: gymnasium.Space[object], observation: torch.Tensor, expected: list[list[float]]
) -> None:
    flatten = FlatObservation(space)
    vectors = flatten(observation)
    assert vectors.dtype == torch.float32
    assert vectors.tolist() == expected
    assert flatten.size == len(expected[0])


def test_the_parts_of_a_dict_are_joined_in_the_order_of_their_keys() -> None:
    flatten = FlatObservation(spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Box(-9.0, 9.0, (2,)))]))
    vectors = flatten({"b": torch.tensor([1]), "a": torch.tensor([[5.0, 6.0]])})
    assert vectors.tolist() == [[5.0, 6.0, 0.0, 1.0]]
    assert flatten.size == 4
    assert not flatten.identity


def test_an_unsupported_space_is_named() -> None:
    with pytest.raises(NetworkError, match=r"Text\(.*is not supported; supported are Box"):
        FlatObservation(spaces.Dict({"a": spaces.Text(3)}))
