"""A batch that an older policy collected is evaluated anew before it is learned from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import numpy as np
import pytest
import torch

from orchestrator import CollectionConfig, LearningConfig, PolicyConfig, Trainer, TrainerConfig
from orchestrator.learning.refresh import Bootstraps, refreshed
from orchestrator.policies import Observation
from tests.orchestrator.collection.test_collector import KINDS, SAME_STEP, SERIAL, Run
from tests.small_networks import Shared

CPU = torch.device("cpu")
REFRESHED = {"proximal_log_prob": "log_prob", "value": "value", "next_value": "next_value"}


def evaluated(run: Run, arrays: dict[str, Any], minibatch_steps: int) -> dict[str, torch.Tensor]:
    assert run.policy is not None
    bootstraps = Bootstraps.take(arrays, CPU)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return refreshed(run.policy, batch, bootstraps, minibatch_steps)


@pytest.mark.parametrize("network", ["make_shared", "make_separate", "make_recurrent", "make_reusing", "lstm"])
@pytest.mark.parametrize(("environment", "mode"), KINDS)
@pytest.mark.parametrize("minibatch_steps", [7, 1000])
def test_the_policy_that_acted_finds_what_it_has_recorded(
    environment: str, mode: Any, network: str, minibatch_steps: int
) -> None:
    run = Run(environment, mode, network if network == "lstm" else f"tests.small_networks:{network}")
    for _ in range(3):
        arrays, _ = run.collect()
        valid = arrays["valid"].copy()
        assert arrays["truncated"].any()
        for name, tensor in evaluated(run, arrays, minibatch_steps).items():
            recorded = arrays[REFRESHED[name]]
            np.testing.assert_allclose(tensor.numpy()[valid], recorded[valid], rtol=1e-4, atol=1e-5, err_msg=name)


def test_another_policy_finds_other_values_also_of_the_ends_of_segments_and_of_truncated_episodes() -> None:
    run = Run(SAME_STEP, "native", "tests.small_networks:make_shared")
    arrays, _ = run.collect()
    recorded = {name: array.copy() for name, array in arrays.items()}
    assert run.policy is not None
    with torch.no_grad():
        run.policy.get_parameter("network.layer.bias")[-1] += 1.0  # of the value
    found = evaluated(run, arrays, 1000)
    continues = recorded["valid"] & ~recorded["terminated"]
    assert (recorded["truncated"] & continues).any()
    for name in ("value", "next_value"):
        difference = found[name].numpy() - recorded[name]
        np.testing.assert_allclose(difference[continues], 1.0, rtol=1e-4, err_msg=name)
    assert not found["next_value"].numpy()[~continues].any()


def test_tokens_are_evaluated_with_the_weights_of_now() -> None:
    run = Run("tests.orchestrator.test_mettagrid:Beside", "sync", "tokens")
    for _ in range(2):
        arrays, _ = run.collect()
        policy = run.policy
        assert policy is not None
        with torch.no_grad():
            policy.get_parameter("network.encoder.place.weight").mul_(-2.0)
            observation, action = (torch.from_numpy(arrays[name].copy()) for name in ("observation", "action"))
            log_prob, value, _ = policy.log_prob_and_value(observation, action)
        recorded = arrays["value"].copy()
        found = evaluated(run, arrays, 20)
        torch.testing.assert_close(found["proximal_log_prob"], log_prob, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["value"], value, rtol=1e-4, atol=1e-5)
        assert not np.allclose(value.numpy(), recorded, rtol=1e-2)


def final_statistics(config: TrainerConfig) -> list[dict[str, float]]:
    statistics: list[dict[str, float]] = []

    async def main() -> None:
        async with Trainer(config).start() as run:
            async for state in run.states():
                assert state.loss_stats is not None
                statistics.append(dict(state.loss_stats))

    anyio.run(main)
    return statistics


CONFIG = TrainerConfig(
    environment=SERIAL,
    total_agent_steps=4 * 4 * 16,
    collection=CollectionConfig(num_environments=4, horizon=16, backend="inline"),
    learning=LearningConfig(update_epochs=1, minibatches=1, learning_rate=0.05),
    policy=PolicyConfig(hidden_sizes=(8,)),
)


def test_learning_begins_where_the_policy_is_and_not_where_it_was_when_it_acted() -> None:
    old, new = (
        final_statistics(replace(CONFIG, learning=replace(CONFIG.learning, refresh=refresh)))
        for refresh in (False, True)
    )
    # One minibatch: nothing is learned yet when its statistics are taken.
    assert old[2]["ppo_actor/approx_kl"] > 1e-3
    assert abs(new[2]["ppo_actor/approx_kl"]) < 1e-6
    assert new[2]["ppo_actor/clip_fraction"] == 0.0
    # The first two epochs are collected with the policy that learning starts with, and the one before.
    assert "behavior_kl" not in new[0]
    assert new[2]["behavior_kl"] > 1e-3
    assert new[2]["behavior_ratio_std"] > 0.0
    assert all("behavior_kl" not in statistics for statistics in old)


def test_without_staleness_nothing_is_evaluated_anew() -> None:
    taking_turns = replace(CONFIG, staleness=0)
    statistics = final_statistics(taking_turns)
    assert all("behavior_kl" not in one for one in statistics)
    without = replace(taking_turns, learning=replace(CONFIG.learning, refresh=False))
    assert final_statistics(without) == statistics


class FailsOnBatches(Shared):
    def forward(self, observation: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.training and not torch.is_inference_mode_enabled() and len(self.observed(observation)) >= 16:
            raise ValueError("too many")
        return super().forward(observation)

    def observed(self, observation: Observation) -> torch.Tensor:
        assert isinstance(observation, torch.Tensor)
        return observation


def test_a_network_that_fails_then_is_named_with_the_epoch() -> None:
    name = f"{__name__}:FailsOnBatches"
    config = replace(CONFIG, environment="CartPole-v1", policy=PolicyConfig(network=name))
    with pytest.raises(ValueError, match="too many") as caught:
        anyio.run(Trainer(config).run)
    assert f"raised by the network '{name}' in epoch 2" in "".join(caught.value.__notes__)
