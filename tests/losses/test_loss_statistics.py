"""Running means that wait for the device only when they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from losses import LossStatistics

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def test_tensors_and_numbers_of_one_name_are_averaged_together() -> None:
    statistics = LossStatistics()
    statistics.add("a", torch.tensor(1.0))
    statistics.add("a", 4.0)
    statistics.add("a", torch.tensor([4]))
    statistics.add("b", torch.tensor(-2.0))

    assert statistics.read() == {"a": 3.0, "b": -2.0}


def test_reading_starts_anew_and_leaves_out_what_was_not_added_again() -> None:
    statistics = LossStatistics()
    statistics.add("a", torch.tensor(5.0))
    statistics.add("b", 1.0)
    statistics.read()
    statistics.add("a", torch.tensor(7.0))

    assert statistics.read() == {"a": 7.0}
    assert statistics.read() == {}


@pytest.mark.slow
def test_adding_never_waits_for_the_device(no_waiting: Callable[[], AbstractContextManager[None]]) -> None:
    statistics = LossStatistics()

    with no_waiting():
        for i in range(40):
            statistics.add("a", torch.full((), float(i)))

    assert statistics.read() == {"a": 19.5}


@pytest.mark.slow
def test_the_guard_of_these_tests_notices_waiting(
    no_waiting: Callable[[], AbstractContextManager[None]],
) -> None:
    with pytest.raises(AssertionError, match="waits for the device"), no_waiting():
        torch.ones(()).item()


def test_adding_keeps_no_graph_alive_and_leaves_gradients_alone() -> None:
    weight = torch.tensor(3.0, requires_grad=True)
    statistics = LossStatistics()
    loss = weight * 2.0

    statistics.add("a", loss)
    loss.backward()

    assert weight.grad is not None
    assert weight.grad.item() == 2.0
    assert statistics.read() == {"a": 6.0}


def test_a_value_is_taken_at_the_moment_it_is_added() -> None:
    statistics = LossStatistics()
    value = torch.tensor(1.0)

    statistics.add("a", value)
    value.fill_(100.0)

    assert statistics.read() == {"a": 1.0}


def test_there_is_room_for_any_number_of_names() -> None:
    statistics = LossStatistics()
    for repeat in range(2):
        for i in range(150):
            statistics.add(f"name {i}", torch.tensor(float(i + repeat)))

    assert statistics.read() == {f"name {i}": i + 0.5 for i in range(150)}


def test_a_tensor_of_several_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a' got a tensor of shape \(3,\)"):
        LossStatistics().add("a", torch.zeros(3))


def test_its_repr_tells_what_is_pending() -> None:
    statistics = LossStatistics()
    statistics.add("a", 1.0)

    assert repr(statistics) == "LossStatistics(device=cpu, counts={'a': 1})"


@pytest.mark.parametrize("value", ["1", None, [1.0], 1j, torch.tensor(1j), np.array([1.0, 2.0])])
def test_what_is_no_number_is_refused_by_the_name_of_the_statistic(value: Any) -> None:
    with pytest.raises(TypeError, match="the statistic 'x' got .* of type .*: give a number"):
        LossStatistics().add("x", value)


@pytest.mark.parametrize("value", [True, np.float64(1), np.int8(1), np.array(1.0)])
def test_numbers_of_every_kind_are_taken(value: Any) -> None:
    statistics = LossStatistics()
    statistics.add("x", value)
    assert statistics.read() == {"x": 1.0}


def test_sums_stay_where_they_are_however_many_there_are() -> None:
    statistics = LossStatistics()
    statistics.add("0", torch.tensor(1.0))
    (first,) = statistics.tensors
    for index in range(100):
        statistics.add(str(index), torch.tensor(float(index)))
    assert statistics.tensors[0] is first
    assert len(statistics.tensors) == 4
    assert statistics.read() == {"0": 0.5} | {str(index): float(index) for index in range(1, 100)}


def test_what_the_host_knows_can_be_put_back_and_added_again() -> None:
    statistics = LossStatistics()
    statistics.add("a", 1.0)
    before = statistics.on_host()
    statistics.add("a", 4.0)
    statistics.add("b", torch.tensor(3.0))
    statistics.set_on_host(before)
    assert statistics.on_host() == {"a": (1.0, 1), "b": (0.0, 0)}
    statistics.add_on_host({"a": (5.0, 1), "b": (0.0, 1)})
    assert statistics.read() == {"a": 3.0, "b": 3.0}
