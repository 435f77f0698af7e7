"""A process that works on a GPU means that one, also where code names none. Seen without a GPU: what torch is told."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import pytest
import torch

from orchestrator.collection.experience_fields import experience_fields
from orchestrator.collection.plan import CollectorPlan
from orchestrator.collection.service import CollectorService
from orchestrator.learning.default_losses import default_losses
from orchestrator.learning.learner import Learner
from orchestrator.learning.messages import LearnerPlan
from orchestrator.policies import Spaces
from orchestrator.workers.global_generators import seeded_global_generators
from orchestrator.workers.interrupt import Interrupt
from state.experience import ExperienceSpec
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator import TrainerConfig


def learner(config: TrainerConfig, device: str) -> object:
    spaces = Spaces(gymnasium.spaces.Box(-1.0, 1.0, (3,)), gymnasium.spaces.Discrete(2))
    return Learner(
        LearnerPlan(
            config=config,
            losses=default_losses(config),
            spaces=spaces,
            device=device,
            max_threads=1,
            interrupt=Interrupt(),
        )
    )


def collector(config: TrainerConfig, device: str) -> object:
    service = CollectorService(CollectorPlan(config=config, device=device), Interrupt())
    own = experience_fields(service.spaces(), 0, refreshes=config.refreshes)
    segments, horizon = config.collection.num_environments, config.collection.horizon
    service.prepare(ExperienceSpec.merge(segments, horizon, {"": own}))
    return service


class Chosen(Exception):
    """As far as it gets here."""


@pytest.mark.parametrize("make", [learner, collector])
def test_the_gpu_that_is_worked_on_becomes_the_processs_own(
    make: Callable[[TrainerConfig, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(device: str) -> None:
        assert device == "cuda:1"
        raise Chosen

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    config = small_config()
    config = replace(config, collection=replace(config.collection, backend="process", device="cuda:1"))
    with seeded_global_generators(1):
        with pytest.raises(Chosen):
            make(config, "cuda:1")
        make(config, "cpu")


@pytest.mark.parametrize("images", [False, True])
def test_a_collector_that_may_choose_takes_the_gpu_for_images_alone(
    images: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context takes memory there."""

    def choose(device: str) -> None:
        assert device == "cuda:1"
        raise Chosen

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    options = {"observation": "image"} if images else {}
    config = small_config(environment="tests.environments:make_wandering", environment_options=options)
    config = replace(config, collection=replace(config.collection, backend="process"))
    with seeded_global_generators(1), pytest.raises(Chosen) if images else nullcontext():
        collector(config, "cuda:1")


@pytest.mark.parametrize("make", [learner, collector])
def test_a_thread_changes_nothing_of_the_program(
    make: Callable[[TrainerConfig, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(device: str) -> None:
        raise Chosen

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    config = small_config()
    config = replace(config, collection=replace(config.collection, backend="inline", device="cuda:99"))
    with pytest.raises((AssertionError, RuntimeError)):  # says torch, which has no such device
        make(config, "cuda:99")
