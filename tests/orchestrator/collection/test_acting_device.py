"""A policy that acts on a device records what it records on the CPU, and the host waits for it once per step."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import anyio
import numpy as np
import pytest
import torch

from orchestrator import ConfigurationError, Trainer
from orchestrator.collection.collector import Collector
from orchestrator.collection.experience_fields import experience_fields
from orchestrator.collection.plan import CollectorPlan
from orchestrator.config.settings import PolicyConfig
from state.experience import ExperienceSpec
from tests.orchestrator.collection.collecting import COUNT, HORIZON, ROLLOUTS, VARIANTS, collecting, experience
from tests.orchestrator.emulated_device import DEVICE, Emulation
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from orchestrator import TrainerConfig

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_recorded_is_what_the_cpu_records(variant: str) -> None:
    config = collecting(**VARIANTS[variant])
    expected = experience("cpu", config)
    with Emulation() as emulation:
        found = experience(DEVICE, config)
    for one, other in zip(found, expected, strict=True):
        for name, array in one.items():
            # Where something is computed in another way on a CPU, in the last digits.
            np.testing.assert_allclose(array, other[name], rtol=1e-3, atol=1e-3, err_msg=name)
    # The action of each step; and once per rollout log-probabilities, values, and what else there is.
    assert ROLLOUTS * HORIZON <= emulation.reads <= ROLLOUTS * (HORIZON + 10)


def test_a_policy_that_gives_no_distribution_is_named_on_a_device_too() -> None:
    config = collecting(policy=PolicyConfig(hidden_sizes=(4,)))
    with Emulation():
        collector = Collector(CollectorPlan(config=config, device=DEVICE))
        spaces = collector.spaces()
        spec = ExperienceSpec.merge(COUNT, HORIZON, {"": experience_fields(spaces, 0, refreshes=config.refreshes)})
        collector.prepare(spec)
        with pytest.raises(RuntimeError, match="the policy gave .nan, nan. for copy 0 of environment 'CartPole-v1'"):
            collector.collect(
                spec.arrays(bytearray(spec.nbytes)),
                lambda policy: [one.detach().fill_(float("nan")) for one in policy.parameters()] and None,
                lambda: False,
            )


def acting_on(device: str) -> TrainerConfig:
    config = small_config(device="cpu")
    return dataclasses.replace(config, collection=dataclasses.replace(config.collection, device=device))


@pytest.mark.parametrize("variant", ["mlp", "images"])
def test_auto_is_where_it_learns_for_images_alone(variant: str) -> None:
    config = collecting(**VARIANTS[variant])
    config = dataclasses.replace(config, collection=dataclasses.replace(config.collection, device="auto"))
    with Emulation() as emulation:
        experience(DEVICE, config)
    assert (emulation.reads > 0) == (variant == "images")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_by_the_name_of_its_setting() -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)collection\.device = .cuda..*sees 0 CUDA devices"):
        anyio.run(Trainer(acting_on("cuda")).run)
