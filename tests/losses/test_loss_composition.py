"""Several losses as one: weights, schedules, callbacks, declared fields, state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from losses import (
    LearnerCallback,
    Loss,
    LossContext,
    LossSet,
    Minibatch,
    PolicyEvaluation,
    PPOActor,
    PPOCritic,
    Schedule,
    ppo_losses,
)
from state.experience import FieldSpec
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import Mapping


class Power(Loss):
    """The mean of the value to a power."""

    def __init__(self, exponent: int, *, field: FieldSpec | None = None, **settings: object) -> None:
        super().__init__(**settings)  # pyright: ignore[reportArgumentType]
        self.exponent = exponent
        self.field = field

    def experience_fields(self) -> tuple[FieldSpec, ...]:
        return () if self.field is None else (self.field,)

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        return minibatch.mean(evaluation.value**self.exponent)


class Remembering(Power):
    """Counts minibatches, and remembers some things of every kind that a state may have."""

    policy_gradient = True
    needs_segments = True

    def __init__(self) -> None:
        super().__init__(2)
        self.minibatches = 0
        self.averages = torch.zeros(3)

    def on_mb_end(self, state: TrainerState) -> None:
        self.minibatches += 1
        self.stop_update()

    def on_epoch_end(self, state: TrainerState) -> None:
        self.averages += state.epoch

    def state_dict(self) -> dict[str, object]:
        return {"minibatches": self.minibatches, "averages": self.averages.clone(), "names": ["a", "b"]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.minibatches = state["minibatches"]
        self.averages.copy_(state["averages"])


def evaluation_of(value: list[float]) -> tuple[PolicyEvaluation, torch.Tensor]:
    leaf = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(len(value), dtype=torch.float64)
    return PolicyEvaluation(log_prob=zeros, entropy=zeros, value=leaf, action_parameters=zeros), leaf


def test_the_total_is_the_weighted_sum_and_the_components_are_not_weighted() -> None:
    losses = LossSet([Power(1, name="one"), Power(2, name="two", weight=0.5), Power(3, name="three", weight=-2.0)])
    evaluation, value = evaluation_of([1.0, 3.0])

    total, components = losses.compute(Minibatch(fields={}), evaluation)
    total.backward()

    assert components.tolist() == [2.0, 5.0, 14.0]
    assert not components.requires_grad
    assert total.item() == 2.0 + 0.5 * 5.0 - 2.0 * 14.0
    assert value.grad is not None
    assert value.grad.tolist() == [(1 + 0.5 * 2 * v - 2 * 3 * v * v) / 2 for v in (1.0, 3.0)]


def test_only_the_losses_scheduled_for_the_epoch_are_computed() -> None:
    losses = LossSet(
        [
            Power(1, name="first", schedule=Schedule(to_epoch=2)),
            Power(2, name="odd", schedule=Schedule(cycle=2, active=(1,))),
        ]
    )
    evaluation, _ = evaluation_of([3.0])

    computed = {
        epoch: losses.compute(Minibatch(fields={}, epoch=epoch), evaluation)[0].item() for epoch in (0, 1, 3, 0)
    }

    assert computed == {0: 3.0, 1: 12.0, 3: 9.0}
    assert [loss.name for loss in losses.active(1)] == ["first", "odd"]
    assert losses.active(2) == ()


def test_an_epoch_without_losses_says_so() -> None:
    losses = LossSet([Power(1, schedule=Schedule(to_epoch=1))])

    with pytest.raises(RuntimeError, match="no loss is active in epoch 2"):
        losses.compute(Minibatch(fields={}, epoch=1), evaluation_of([1.0])[0])


def test_a_weight_changed_while_training_counts_at_once() -> None:
    loss = Power(1)
    losses = LossSet([loss])
    loss.weight = 0.25

    assert losses.compute(Minibatch(fields={}), evaluation_of([4.0])[0])[0].item() == 1.0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(2), r"a tensor of shape \(2,\)"),
        (torch.zeros((), dtype=torch.complex64), "a tensor of torch.complex64"),
        (0.5, "0.5 of type float"),
        (None, "None of type NoneType"),
    ],
)
def test_a_loss_that_is_no_scalar_is_named(value: object, said: str) -> None:
    class Wrong(Loss):
        def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
            return value  # type: ignore[return-value]

    with pytest.raises(ValueError, match=f"'wrong' returned {said}, but must return a scalar"):
        LossSet([Wrong()]).compute(Minibatch(fields={}), evaluation_of([1.0, 2.0])[0])


def test_two_losses_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"called 'ppo_actor'.*name="):
        LossSet([PPOActor(), PPOCritic(), PPOActor(clip=0.1)])

    LossSet([PPOActor(), PPOActor(name="careful_actor", clip=0.1)])


def test_no_loss_and_what_is_no_loss_are_refused() -> None:
    class Unfinished(Loss):
        pass

    with pytest.raises(ValueError, match="at least one loss"):
        LossSet([])
    with pytest.raises(TypeError, match="is not a loss"):
        LossSet([PPOActor])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="Unfinished must define compute"):
        LossSet([Unfinished()])


def test_only_overridden_callbacks_are_found_and_in_order() -> None:
    losses = LossSet([*ppo_losses(), Remembering()])

    assert len(losses.overriding("on_mb_end")) == len(losses.overriding("on_epoch_end")) == 1
    assert losses.overriding("on_rollout_start") == ()
    assert losses.overriding("on_mb_end") is losses.overriding("on_mb_end")


def test_a_request_to_stop_lasts_until_the_next_epoch_begins() -> None:
    losses = LossSet([*ppo_losses(), Remembering()])
    assert not losses.stop_requested

    for callback in losses.overriding("on_mb_end"):
        callback(TrainerState())
    assert losses.stop_requested

    losses.begin_epoch()
    assert not losses.stop_requested


@pytest.mark.parametrize(("when", "said"), [(torch.ones(2), r"\(2,\)"), (0.5, "0.5"), (True, "True")])
def test_a_request_to_stop_depends_on_one_element(when: object, said: str) -> None:
    with pytest.raises(TypeError, match=f"stop_update of 'power' was given {said}, expected a tensor of one element"):
        Power(1).stop_update(when)  # type: ignore[arg-type]


@pytest.mark.parametrize("when", [True, False])
def test_a_request_to_stop_may_depend_on_a_tensor(when: bool) -> None:
    remembering = Remembering()
    losses = LossSet([*ppo_losses(), remembering])
    remembering.stop_update(torch.tensor(when))
    assert losses.stop_requested is when
    assert losses.stop_requested is when

    losses.begin_epoch()
    assert not losses.stop_requested
    remembering.stop_update(torch.tensor(True))
    losses.begin_epoch()
    assert not losses.stop_requested


def test_every_loss_is_attached(context: LossContext) -> None:
    losses = LossSet(ppo_losses())

    losses.attach(context)

    assert all(loss.context is context for loss in losses.members)


def test_declared_fields_are_merged() -> None:
    goal = FieldSpec("goal", (3,), "float32")
    depth = FieldSpec("depth", (), "float32", "segment")
    losses = LossSet(
        [
            Power(1, name="a", field=goal),
            Power(1, name="b", field=depth),
            Power(1, name="c", field=FieldSpec("goal", (3,), "float32")),
            Power(1, name="d"),
        ]
    )

    assert losses.experience_fields() == (goal, depth)


def test_fields_declared_differently_are_refused_with_both_losses_named() -> None:
    with pytest.raises(ValueError, match=r"'a' and 'b' declare the experience field 'goal'"):
        LossSet(
            [
                Power(1, name="a", field=FieldSpec("goal", (3,), "float32")),
                Power(1, name="b", field=FieldSpec("goal", (4,), "float32")),
            ]
        )


def test_it_tells_what_its_losses_need() -> None:
    plain, special = LossSet(ppo_losses()), LossSet([*ppo_losses(), Remembering()])

    assert (plain.needs_segments, special.needs_segments) == (False, True)
    assert repr(plain) == "LossSet(ppo_actor, ppo_critic)"


class Watching(LearnerCallback):
    """Tracks what it observes, and changes its minibatch."""

    def observe(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> None:
        assert not torch.is_grad_enabled()
        self.track("value", evaluation.value.mean())
        minibatch.fields["x"].zero_()

    def on_mb_end(self, state: TrainerState) -> None:
        self.stop_update()


def test_a_callback_watches_among_the_losses_and_adds_nothing_to_them(context: LossContext) -> None:
    power, watching = Power(2), Watching()
    losses = LossSet([watching, power])
    losses.attach(context)
    evaluation, _ = evaluation_of([1.0, 2.0])
    minibatch = Minibatch(fields={"x": torch.ones(2)})

    total, components = losses.compute(minibatch, evaluation)

    alone, _ = LossSet([Power(2)]).compute(Minibatch(fields={}), evaluation)
    assert torch.equal(total, alone)
    assert total.requires_grad
    assert components.shape == (1,)
    assert minibatch["x"].tolist() == [1.0, 1.0]
    assert context.statistics.read() == {"watching/value": 1.5}
    assert losses.losses == (power,)
    (stop,) = losses.overriding("on_mb_end")
    stop(TrainerState())
    assert losses.stop_requested


def test_callbacks_alone_are_no_losses() -> None:
    with pytest.raises(ValueError, match="at least one loss"):
        LossSet([Watching()])


def test_a_loss_must_not_change_what_a_callback_observes(context: LossContext) -> None:
    class Careless(Loss):
        def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
            with torch.no_grad():
                evaluation.value.zero_()
            return evaluation.value.sum()

    evaluation, _ = evaluation_of([1.0, 2.0])
    with pytest.raises(ValueError, match="'careless' changed a tensor of the policy's evaluation in place"):
        LossSet([Careless(), Watching()]).compute(Minibatch(fields={}), evaluation)


def test_the_state_goes_round_trip() -> None:
    losses = LossSet([*ppo_losses(), Remembering()])
    for callback in (*losses.overriding("on_mb_end"), *losses.overriding("on_epoch_end")):
        callback(TrainerState(epoch=4))
    state = losses.state_dict()

    restored = LossSet([*ppo_losses(), Remembering()])
    restored.load_state_dict(state)

    remembering = restored.members[-1]
    assert isinstance(remembering, Remembering)
    assert remembering.minibatches == 1
    assert remembering.averages.tolist() == [4.0, 4.0, 4.0]
    assert restored.state_dict()["remembering"]["names"] == ["a", "b"]


def test_the_state_of_other_losses_is_refused() -> None:
    state = LossSet([Remembering(), PPOActor()]).state_dict()
    losses = LossSet([Remembering(), PPOCritic()])

    with pytest.raises(ValueError, match=r"lacks \['ppo_critic'\] and has \['ppo_actor'\] in addition"):
        losses.load_state_dict(state)
