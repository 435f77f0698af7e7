"""Which epochs a schedule makes a loss active in."""

from __future__ import annotations

import pytest

from losses import Schedule


def active_epochs(schedule: Schedule, epochs: int = 12) -> list[int]:
    return [epoch for epoch in range(epochs) if schedule.active_at(epoch)]


def test_a_loss_is_always_active_by_default() -> None:
    assert active_epochs(Schedule()) == list(range(12))


def test_a_range_begins_with_its_first_epoch_and_ends_before_its_last() -> None:
    assert active_epochs(Schedule(from_epoch=3, to_epoch=6)) == [3, 4, 5]


def test_a_cycle_repeats_from_the_first_epoch_on() -> None:
    assert active_epochs(Schedule(cycle=4, active=(0, 1))) == [0, 1, 4, 5, 8, 9]
    assert active_epochs(Schedule(from_epoch=2, to_epoch=9, cycle=3, active=(2,))) == [4, 7]


def test_a_list_of_active_epochs_becomes_a_tuple() -> None:
    schedule = Schedule(cycle=2, active=[1])  # pyright: ignore[reportArgumentType]

    assert schedule.active == (1,)
    assert hash(schedule) == hash(Schedule(cycle=2, active=(1,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"from_epoch": -1}, "from_epoch is -1"),
        ({"from_epoch": 5, "to_epoch": 5}, "to_epoch is 5, which must be greater than from_epoch, 5"),
        ({"cycle": 0, "active": (0,)}, "cycle is 0"),
        ({"cycle": 3}, "cycle is given without active"),
        ({"active": (0,)}, "active is given without cycle"),
        ({"cycle": 3, "active": ()}, "active is empty"),
        ({"cycle": 3, "active": (1, 1)}, "repeated"),
        ({"cycle": 3, "active": (0, 3)}, r"\[3\], outside of the cycle of 3 epochs"),
    ],
)
def test_an_impossible_schedule_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**settings)  # pyright: ignore[reportArgumentType]


def test_all_that_is_impossible_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"from_epoch is -2.*cycle is given without active"):
        Schedule(from_epoch=-2, cycle=3)
