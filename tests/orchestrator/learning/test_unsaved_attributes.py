"""Attributes of networks and losses that change in training, though no checkpoint has them, are named once."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from losses import Loss, Minibatch, PolicyEvaluation, ppo_losses
from orchestrator import CheckpointsConfig, PolicyConfig, Trainer
from tests.orchestrator.training import small_config
from tests.small_networks import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from losses import LearnerCallback
    from orchestrator.policies import Spaces

pytestmark = pytest.mark.slow


class Learning(Shared):
    """Does something to itself in training, before its outputs."""

    def __init__(self, spaces: Spaces, attributes: dict[str, Any], change: Callable[[Any, Tensor], None]) -> None:
        super().__init__(spaces)
        vars(self).update(attributes)
        self.rest = nn.Dropout(0.0)
        self.register_buffer("seen", torch.zeros(()))
        self._change = change

    def forward(self, observation: Any) -> tuple[Tensor, Tensor]:
        if self.training:
            self._change(self, observation)
        return super().forward(observation)


def count(self: Any, given: Tensor) -> None:
    self.calls += 1


def average(self: Any, given: Tensor) -> None:
    self.mean = 0.9 * self.mean + 0.1 * given.mean().detach()


def tally(self: Any, given: Tensor) -> None:
    self.counts["calls"].append(len(self.counts["calls"]))


def in_place(self: Any, given: Tensor) -> None:
    self._array += 1


def draw(self: Any, given: Tensor) -> None:
    self.random.random()


def schedule(self: Any, given: Tensor) -> None:
    self.rest.p = min(self.rest.p + 0.001, 0.5)


def draw_late(self: Any, given: Tensor) -> None:
    self.late = getattr(self, "late", 0) + 1


def buffer(self: Any, given: Tensor) -> None:
    self.seen = self.seen + 1.0


def lazily(self: Any, given: Tensor) -> None:
    if self.mask is None:
        self.mask = torch.ones(4)


def keep_output(self: Any, given: Tensor) -> None:
    self.features = self.layer(given)


def hook(self: Any, given: Tensor) -> None:
    self.layer.register_forward_hook(lambda *_: None)


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
CHANGES: dict[str, tuple[dict[str, Any], Any, str | None]] = {
    "a number": ({"calls": 0}, count, "calls"),
    "a tensor": ({"mean": torch.zeros(())}, average, "mean"),
    "in containers": ({"counts": {"calls": []}}, tally, "counts"),
    "an array in place": ({"_array": np.zeros(3)}, in_place, "_array"),
    "a generator of numpy": ({"random": np.random.default_rng(3)}, draw, "random"),
    "a generator of Python": ({"random": random.Random(3)}, draw, "random"),
    "a setting of a layer": ({}, schedule, "rest.p"),
    "from the second time on": ({}, draw_late, "late"),
    "in a set": ({"places": {0}}, lambda self, _: self.places.add(len(self.places)), "places"),
    "nothing": ({"names": ["a"]}, lambda *_: None, None),
    "what is not looked at": (
        {"sparse": torch.eye(2).to_sparse(), "meta": torch.empty(2, device="meta"), "cycle": CYCLE},
        lambda *_: None,
        None,
    ),
    "a buffer": ({}, buffer, None),
    "made when needed": ({"mask": None}, lazily, None),
    "an output": ({"features": None}, keep_output, None),
    "hooks": ({}, hook, None),
}


def make(name: str) -> Callable[[Spaces], nn.Module]:
    return lambda spaces: Learning(spaces, *CHANGES[name][:2])


def __getattr__(name: str) -> Any:
    """A function that makes the network of a case, by name."""
    if name.startswith("network_"):
        return make(name.removeprefix("network_").replace("_", " "))
    raise AttributeError(name)


class Changing(Loss):
    def __init__(self, name: str) -> None:
        super().__init__()
        attributes, self._change, _ = CHANGES[name]
        vars(self).update(attributes)

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        self._change(self, evaluation.value)
        return 0.0 * evaluation.value.mean()


class Remembering(Changing):
    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls = int(state["calls"])


class Holding(Loss):
    """A module of its own, which it changes, and the policy, which is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1)
        self.policy: Any = None

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        self.policy = self.context.policy
        with torch.no_grad():
            self.scale.weight += 1.0
        return 0.0 * evaluation.value.mean()


def warnings_of(
    folder: Path, caplog: pytest.LogCaptureFixture, policy: PolicyConfig | None = None, *more: LearnerCallback
) -> list[str]:
    config = small_config(epochs=4, run_dir=folder / "run", checkpoints=CheckpointsConfig(every=1, keep=0))
    if policy is not None:
        config = replace(config, policy=policy)
    anyio.run(Trainer(config, losses=[*ppo_losses(), *more]).run)
    return [message for message in caplog.messages if "no checkpoint has" in message]


@pytest.mark.parametrize("name", CHANGES)
def test_attributes_of_a_network_that_no_checkpoint_has_are_named_once(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, attribute = f"{__name__}:network_{name.replace(' ', '_')}", CHANGES[name][2]
    found = warnings_of(tmp_path, caplog, PolicyConfig(network=path))
    if attribute is None:
        assert found == []
    else:
        (message,) = found
        assert message.startswith(f"{attribute} of the network '{path}' changed in the course of training")
        assert "register_buffer" in message


@pytest.mark.parametrize("name", ["a number", "a tensor", "in containers", "a generator of numpy", "nothing"])
def test_attributes_of_a_loss_that_no_checkpoint_has_are_named_once(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attribute = CHANGES[name][2]
    found = warnings_of(tmp_path, caplog, None, Changing(name))
    assert len(found) == (attribute is not None)
    assert all(message.startswith(f"{attribute} of the loss 'changing' changed") for message in found)


def test_a_module_of_a_loss_is_named_and_the_policy_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (message,) = warnings_of(tmp_path, caplog, None, Holding())
    assert message.startswith("scale of the loss 'holding' changed")


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_losses_that_remember_and_what_is_included_are_not_named(
    network: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(tmp_path, caplog, PolicyConfig(network=network), Remembering("a number")) == []
