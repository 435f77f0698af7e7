"""Mistakes in hooks and losses that would do nothing in silence, or fail only when they are called, are refused at the
start with what was probably meant."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from losses import LearnerCallback, Loss
from orchestrator import Hook, StateUpdate, Trainer
from orchestrator.hooks.check import HookConfigurationError
from tests.orchestrator.training import losses_with, small_config

if TYPE_CHECKING:
    from state import TrainerState


async def nothing(self: Any, state: TrainerState) -> None: ...


def hook(**attributes: Any) -> Hook:
    return type("Mine", (Hook,), {"on_epoch_end": nothing, **attributes})()


def callback(base: type = LearnerCallback, **attributes: Any) -> Any:
    return type("Mine", (base,), attributes)()


HOOKS: dict[str, tuple[dict[str, Any], str]] = {
    "evry": ({"evry": 2}, "there is no 'evry'; did you mean 'every'"),
    "time_out": ({"time_out": 2.0}, "there is no 'time_out'; did you mean 'timeout'"),
    "resource": ({"resource": nothing}, "there is no 'resource'; did you mean 'resources'"),
    "on_epoch_ends": ({"on_epoch_ends": nothing}, "no callback 'on_epoch_ends'; did you mean 'on_epoch_end'"),
    "no state": (
        {"on_epoch_end": lambda self: None},
        r"on_epoch_end has the parameters \(self\), .* write it as \(self, state\)",
    ),
    "no self": ({"on_epoch_end": lambda: None}, r"on_epoch_end has no parameters: write it as \(self, state\)"),
    "more": (
        {"on_failure": lambda self, state, why: None},
        r"has the parameters \(self, state, why\), but is called with state",
    ),
}
LOSSES: dict[str, tuple[dict[str, Any], str]] = {
    "observ": ({"observ": lambda self, minibatch, evaluation: None}, "no 'observ'; did you mean 'observe'"),
    "on_epoch_ends": ({"on_epoch_ends": lambda self, state: None}, "'on_epoch_ends'; did you mean 'on_epoch_end'"),
    "no state": ({"on_mb_end": lambda self: None}, r"on_mb_end has the parameters \(self\), but is called with state"),
    "one": ({"observe": lambda self, minibatch: None}, r"write it as \(self, minibatch, evaluation\)"),
    "a hook's": ({"on_training_end": lambda self, state: None}, "on_training_end is a callback of hooks"),
}


@pytest.mark.parametrize("case", HOOKS)
def test_a_mistake_in_a_hook_is_refused_with_what_was_meant(case: str) -> None:
    attributes, message = HOOKS[case]
    with pytest.raises(HookConfigurationError, match=f"hook 'mine': .*{message}"):
        Trainer(small_config(), hooks=[hook(**attributes)])


def test_a_mistake_in_an_attribute_that_a_constructor_sets_is_found_too() -> None:
    class Mine(Hook):
        def __init__(self) -> None:
            self.overfow = "block"

        async def on_epoch_end(self, state: TrainerState) -> None: ...

    with pytest.raises(HookConfigurationError, match="did you mean 'overflow'"):
        Trainer(small_config(), hooks=[Mine()])


@pytest.mark.parametrize("case", LOSSES)
def test_a_mistake_in_a_loss_is_refused_with_what_was_meant(case: str) -> None:
    attributes, message = LOSSES[case]
    with pytest.raises(TypeError, match=f"the loss 'mine': .*{message}"):
        anyio.run(Trainer(small_config(), losses=losses_with(callback(**attributes))).run)


def test_a_loss_whose_compute_takes_other_arguments_is_refused() -> None:
    with pytest.raises(TypeError, match=r"compute has the parameters \(self, batch\)"):
        anyio.run(Trainer(small_config(), losses=losses_with(callback(Loss, compute=lambda self, batch: None))).run)


def test_names_of_ones_own_that_are_only_alike_are_no_mistakes() -> None:
    own = {"names": ["a"], "saved": 0, "save": lambda self: None, "runs": 1, "weights": 2, "state": 3, "events": 4}
    own |= {
        "train": True,
        "rain": 1,
        "very": 1,
        "tries": 0,
        "never": 0,
        "max_age": 3.0,
        "entries": deque(),
        "saves_": (),
    }
    own |= {"source": nothing, "stack": lambda self, x: x, "content": "", "delivered": 0, "transit": 1}
    Trainer(small_config(), hooks=[hook(**own)], losses=losses_with(callback(**own)))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"stop": "yes"}, "stop must be True or False, not 'yes'"),
        ({"save_now": 1}, "save_now must be True or False, not 1"),
        ({"results": [1]}, r"results must be a mapping of names to values, not \[1\]"),
        ({"results": {1: 2}}, r"the names of results must be text, not \[1\]"),
        ({"latest_wandb_uri": 3}, "latest_wandb_uri must be of type str, not int: 3"),
    ],
)
def test_an_update_with_values_of_wrong_types_is_an_error_that_names_them(update: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        StateUpdate(**update)


def test_failures_at_different_events_do_not_add_up_to_disable_a_hook(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Hook):
        on_error = "disable"
        disable_after = 3
        overflow = "block"
        handled = 0

        async def on_rollout_end(self, state: TrainerState) -> None:
            if state.epoch < 2:
                raise ValueError("not yet")

        async def on_epoch_end(self, state: TrainerState) -> None:
            self.handled += 1
            if state.epoch < 3:
                raise ValueError("not yet")

    failing = Failing()
    with caplog.at_level(logging.ERROR):
        final = anyio.run(Trainer(small_config(epochs=6), hooks=[failing]).run)
    assert failing.handled == final.epoch
    assert "disabled" not in caplog.text
