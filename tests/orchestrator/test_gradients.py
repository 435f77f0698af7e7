"""What loses its gradient while the run goes on is refused or warned of by name; what is frozen is not."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
import torch
from torch import Tensor, nn

from losses import Loss, Minibatch, PolicyEvaluation, Schedule, ppo_losses
from orchestrator import LossesConfig, PolicyConfig, Trainer
from orchestrator.policies import NetworkError, Spaces
from state import TrainerState
from tests.orchestrator.training import Backend, losses_with, small_config

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.test_gradients"
_FIRST_CALLS = 10
"""Of those in training mode; an epoch of these tests has four."""


class Losing(nn.Module):
    """Loses gradients after the tenth call in which it learns."""

    def __init__(self, lost: str) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.actor = nn.Linear(6, 2)
        self.critic = nn.Linear(6, 1)
        self._lost = lost
        self._calls = 0

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        self._calls += self.training and torch.is_grad_enabled()
        lost = self._lost if self._calls > _FIRST_CALLS else ""
        with torch.set_grad_enabled(torch.is_grad_enabled() and lost != "all"):
            hidden = torch.tanh(self.body(observation))
            hidden = hidden.detach() if lost == "body" else hidden
            logits, value = self.actor(hidden), self.critic(hidden).squeeze(-1)
        return logits.detach() if lost == "actor" else logits, value.detach() if lost == "critic" else value


def losing_actor(spaces: Spaces) -> nn.Module:
    return Losing("actor")


def losing_critic(spaces: Spaces) -> nn.Module:
    return Losing("critic")


def losing_all(spaces: Spaces) -> nn.Module:
    return Losing("all")


def losing_body(spaces: Spaces) -> nn.Module:
    return Losing("body")


def losing_nothing(spaces: Spaces) -> nn.Module:
    return Losing("")


def own(function: str) -> PolicyConfig:
    return PolicyConfig(network=f"{HERE}:{function}")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "gradient" in record.getMessage()]


@pytest.mark.parametrize("backend", ["inline", "process"])
@pytest.mark.parametrize(
    ("network", "output"),
    [("losing_actor", "action parameters"), ("losing_critic", "value"), ("losing_all", "action parameters")],
)
def test_an_output_that_loses_its_gradient_in_the_run_is_refused_by_name(
    network: str, output: str, backend: Backend
) -> None:
    with pytest.raises(NetworkError, match=f"the {output} .*'{HERE}:{network}' .* from epoch 3 on.*without detach"):
        anyio.run(Trainer(small_config(epochs=6, backend=backend, policy=own(network))).run)


def test_layers_that_no_gradient_reaches_any_more_are_warned_of_once_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        anyio.run(Trainer(small_config(epochs=6, policy=own("losing_body"))).run)
    (warning,) = warnings(caplog)
    assert "from epoch 4 on" in warning
    assert "network.body.weight, network.body.bias" in warning
    assert "actor" not in warning
    assert "detach()" in warning


class Detaching(Loss):
    """Without a gradient from the third epoch on."""

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        loss = evaluation.entropy.mean()
        return loss.detach() if minibatch.epoch >= 2 else loss


class Freezing(Loss):
    """Freezes a part of the network in the second epoch."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        return evaluation.entropy.mean()

    def on_rollout_end(self, state: TrainerState) -> None:
        if state.epoch == 1:
            network: Any = self.context.policy.network
            getattr(network, self._part).requires_grad_(False)
            if self._part != "body":
                network.body.requires_grad_(False)


def test_a_loss_that_loses_its_gradient_is_warned_of_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        anyio.run(Trainer(small_config(epochs=6), losses=losses_with(Detaching())).run)
    (warning,) = warnings(caplog)
    assert "from epoch 3 on, the policy gets no gradient from the losses detaching" in warning


@pytest.mark.parametrize("part", ["body", "actor", "critic"])
def test_what_is_frozen_in_the_run_is_no_fault(part: str, caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(epochs=6, policy=own("losing_nothing"))
    with caplog.at_level(logging.WARNING):
        anyio.run(Trainer(config, losses=losses_with(Freezing(part))).run)
    assert not warnings(caplog)


def test_losses_that_take_turns_are_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    actor, critic = ppo_losses()
    critic.schedule, actor.schedule = Schedule(cycle=2, active=(0,)), Schedule(cycle=3, active=(0, 1))
    with caplog.at_level(logging.WARNING):
        anyio.run(Trainer(small_config(epochs=8), losses=(actor, critic)).run)
    assert not warnings(caplog)


def test_an_output_that_no_loss_follows_may_lose_its_gradient() -> None:
    config = small_config(epochs=6, policy=own("losing_critic"), losses=LossesConfig(names=("ppo_actor",)))
    assert anyio.run(Trainer(config).run).epoch == 6


@pytest.mark.parametrize(
    ("names", "unused"), [(("vtrace_actor",), "network.critic"), (("ppo_critic",), "network.actor")]
)
def test_a_part_of_the_network_that_no_loss_learns_is_warned_of_by_name(
    names: tuple[str, ...], unused: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(epochs=3, losses=LossesConfig(names=names))
    with caplog.at_level(logging.WARNING):
        anyio.run(Trainer(config).run)
    (warning,) = warnings(caplog)
    assert f"{unused}.weight_0" in warning
    assert f"no loss ({names[0]})" in warning
    assert "losses.names" in warning


def test_a_loss_that_comes_later_may_leave_a_part_of_the_network_until_then(caplog: pytest.LogCaptureFixture) -> None:
    actor, critic = ppo_losses()
    critic.schedule = Schedule(from_epoch=2)
    with caplog.at_level(logging.WARNING):
        anyio.run(Trainer(small_config(epochs=4), losses=(actor, critic)).run)
    assert not warnings(caplog)
