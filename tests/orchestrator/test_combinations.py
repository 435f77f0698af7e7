"""Every kind of policy, loss, action and observation trains: some epochs, with weights that change and stay finite."""

from __future__ import annotations

import dataclasses
from typing import Any

import anyio
import numpy as np
import pytest

from orchestrator import LearningConfig, LossesConfig, PolicyConfig, Trainer
from orchestrator.learning.default_losses import default_losses
from tests.orchestrator.training import small_config

pytestmark = pytest.mark.slow

LEARNING = LearningConfig(update_epochs=2, minibatches=2)
VTRACE = LossesConfig(names=("vtrace_actor", "vtrace_critic"))


def wandering(**options: str) -> dict[str, Any]:
    return {"environment": "tests.environments:make_wandering", "environment_options": options}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"environment": "Pendulum-v1"}, id="box actions"),
        pytest.param(wandering(observation="dict"), id="dict observations"),
        pytest.param(wandering(action="multidiscrete"), id="multi-discrete actions"),
        pytest.param(wandering(observation="image"), id="images"),
        pytest.param({"environment": "FrozenLake-v1"}, id="discrete observations"),
        pytest.param({"losses": VTRACE}, id="v-trace"),
        pytest.param({"losses": VTRACE, "staleness": 3}, id="v-trace, very stale"),
        pytest.param({"losses": VTRACE, "policy": PolicyConfig(network="lstm", lstm_size=4)}, id="v-trace, lstm"),
        pytest.param({"policy": PolicyConfig(network="lstm", lstm_size=4)}, id="lstm"),
        pytest.param({"policy": PolicyConfig(normalize_observations=True, normalize_rewards=True)}, id="normalised"),
        pytest.param({"losses": LossesConfig(target_kl=1e-9)}, id="target kl"),
        pytest.param({"losses": LossesConfig(value_clip=0.1)}, id="value clipping"),
        pytest.param({"learning": dataclasses.replace(LEARNING, priority_exponent=0.8)}, id="prioritized segments"),
        pytest.param({"learning": dataclasses.replace(LEARNING, shuffle="segments")}, id="segments"),
        pytest.param({"learning": dataclasses.replace(LEARNING, accumulate_minibatches=2)}, id="accumulation"),
        pytest.param({"learning": dataclasses.replace(LEARNING, learning_rate_schedule="cosine")}, id="cosine"),
        pytest.param({"learning": dataclasses.replace(LEARNING, learning_rate_schedule="adaptive")}, id="adaptive"),
        pytest.param({"collectors": 2}, id="two collectors"),
        pytest.param(wandering(observation="image") | {"collectors": 2, "staleness": 2}, id="images, two"),
    ],
)
def test_it_trains(settings: dict[str, Any]) -> None:
    trainer = Trainer(small_config(epochs=3, **settings))
    first: list[dict[str, Any]] = []

    @trainer.on_new_training_run
    async def remember(state: Any) -> None:
        first.append({name: array.copy() for name, array in state.policy.tensors.items()})

    final = anyio.run(trainer.run)
    assert final.epoch >= 2
    assert final.policy is not None
    assert final.loss_stats is not None
    assert all(np.isfinite(array).all() for array in final.policy.tensors.values())
    assert any((array != first[0][name]).any() for name, array in final.policy.tensors.items())
    assert all(np.isfinite(final.loss_stats[loss.name]) for loss in default_losses(trainer.config))


def test_the_update_epochs_end_early_when_a_loss_asks_for_it() -> None:
    final = anyio.run(Trainer(small_config(losses=LossesConfig(target_kl=1e-9), staleness=0)).run)
    assert final.update_epoch == 1
    assert final.mb_idx <= 2
