"""What every loss can do before it computes anything."""

from __future__ import annotations

import math

import pytest
import torch

from losses import Loss, LossContext, PPOActor, Schedule
from state.trainer_state import TrainerState


class ExplorationBonus(Loss):
    def compute(self, minibatch: object, evaluation: object) -> torch.Tensor:
        return torch.zeros(())


@pytest.mark.parametrize(("loss", "name"), [(ExplorationBonus(), "exploration_bonus"), (PPOActor(), "ppo_actor")])
def test_the_default_name_is_the_class_in_snake_case(loss: Loss, name: str) -> None:
    assert loss.name == name


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_name_that_would_break_the_keys_of_statistics_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must not be empty or contain a slash"):
        ExplorationBonus(name=name)


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        ExplorationBonus(weight=weight)


def test_it_is_active_when_its_schedule_says_so() -> None:
    loss = ExplorationBonus(schedule=Schedule(from_epoch=2))

    assert [loss.active_at(epoch) for epoch in range(4)] == [False, False, True, True]


def test_tracked_values_appear_under_the_name_of_the_loss_unless_they_have_a_full_key(
    context: LossContext,
) -> None:
    loss = ExplorationBonus()
    loss.attach(context)

    loss.track("size", torch.tensor(2.0))
    loss.track("size", 4.0)
    loss.track("exploration/novelty", 1.0)

    assert context.statistics.read() == {"exploration_bonus/size": 3.0, "exploration/novelty": 1.0}


def test_tracking_before_it_is_attached_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"'exploration_bonus' is not attached.*call attach"):
        ExplorationBonus().track("size", 1.0)


def test_a_loss_without_state_refuses_to_load_one() -> None:
    loss = ExplorationBonus()

    assert loss.state_dict() == {}
    loss.load_state_dict({})
    with pytest.raises(ValueError, match="keeps no state, but was given"):
        loss.load_state_dict({"count": 3})


def test_callbacks_that_are_not_overridden_do_nothing() -> None:
    loss = ExplorationBonus()

    assert loss.on_new_training_run(TrainerState()) is None
    assert loss.on_mb_end(TrainerState()) is None
