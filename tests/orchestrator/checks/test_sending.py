"""A loss that cannot be sent to the learner is refused at the start, and what keeps it from that is named."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest
import torch
from torch import Tensor, nn

from losses import LearnerCallback, Loss, Minibatch, PolicyEvaluation, ppo_losses
from orchestrator import Trainer
from tests.orchestrator.training import small_config

pytestmark = [pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"), pytest.mark.slow]


def doubled(value: Tensor) -> Tensor:
    return 2 * value


class Having(Loss):
    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.thing = thing

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        return 0.0 * evaluation.value.mean()


class Observing(LearnerCallback):
    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.thing = thing


class Attaching(Having):
    """Makes what it needs in the learner."""

    def attach(self, context: Any) -> None:
        super().attach(context)
        self.thing = torch.jit.script(doubled)

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        return 0.0 * self.thing(evaluation.value).mean()


def scripted() -> nn.Module:
    return torch.jit.script(nn.Linear(2, 2))


def traced() -> nn.Module:
    return torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))


JIT = "is a module of torch.jit, which can't be pickled .*make it in attach.*, or use the module or function in Python"
THINGS: dict[str, tuple[Callable[[], Any], str]] = {
    "a scripted function": (lambda: torch.jit.script(doubled), "thing is a function of torch.jit, which .*in Python"),
    "a scripted module": (scripted, f"thing {JIT}"),
    "a traced module": (traced, f"thing {JIT}"),
    "within a module": (lambda: nn.Sequential(nn.ReLU(), scripted()), rf"thing\.1 {JIT}"),
    "in a list": (lambda: [1, {"a": scripted()}], rf"thing\[1\]\['a'\] {JIT}"),
    "a lock": (threading.Lock, r"thing is of the type lock, which can't be pickled .*make it in attach\(context\)"),
    "a generator": (lambda: (number for number in range(3)), "thing is of the type generator, which"),
}


@pytest.mark.parametrize("kind", [Having, Observing])
@pytest.mark.parametrize("name", THINGS)
def test_a_loss_with_what_cannot_be_sent_to_the_learner_is_refused_by_name(name: str, kind: type[Any]) -> None:
    make, message = THINGS[name]
    trainer = Trainer(small_config(epochs=1), losses=[*ppo_losses(), kind(make())])
    with pytest.raises(
        TypeError, match=f"the loss '{kind.__name__.lower()}' can't be sent to the learner.*: {message}"
    ):
        anyio.run(trainer.run)


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_what_a_loss_makes_in_attach_need_not_be_sent(backend: Any) -> None:
    config = small_config(epochs=1)
    config = replace(config, collection=replace(config.collection, backend=backend))
    assert anyio.run(Trainer(config, losses=[*ppo_losses(), Attaching(None)]).run).epoch >= 1
