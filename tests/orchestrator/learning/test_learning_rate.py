from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import LearningConfig, Trainer
from orchestrator.learning.learning_rate import LEAST, LearningRate, RateSchedule, schedule_factor
from tests.orchestrator.snapshots.test_resume import assert_same, config_in, for_epochs
from tests.orchestrator.training import small_config

ADAPTIVE = LearningConfig(
    update_epochs=2, minibatches=2, learning_rate=0.02, learning_rate_schedule="adaptive", learning_rate_kl=1e-4
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        ("constant", 0.7, 1.0),
        ("linear", 0.25, 0.75),
        ("linear", 2.0, 0.0),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("adaptive", 0.7, 1.0),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: RateSchedule, progress: float, factor: float) -> None:
    assert schedule_factor(schedule, progress) == pytest.approx(factor)
    assert LearningRate(0.01, schedule, 0.01).at(progress, 3.0) == pytest.approx(0.03 * factor)


def test_the_adaptive_rate_falls_while_the_policy_moves_far_and_rises_again_up_to_what_is_configured() -> None:
    rate = LearningRate(0.01, "adaptive", target=0.01)
    rates: list[float] = []
    for divergence in (0.03, 0.03, 0.015, 0.006, 0.004, 0.004, 0.004):
        rate.learned({"ppo_actor/approx_kl": divergence, "other": 5.0})
        rates.append(rate.at(0.5))
    assert rates == pytest.approx([0.01 / 1.5, 0.01 / 2.25, 0.01 / 2.25, 0.01 / 2.25, 0.01 / 1.5, 0.01, 0.01])


@pytest.mark.parametrize("divergence", [math.nan, math.inf, 9.0])
def test_the_adaptive_rate_falls_to_a_hundredth_at_most(divergence: float) -> None:
    rate = LearningRate(0.01, "adaptive", target=0.01)
    for _ in range(100):
        rate.learned({"first/approx_kl": 0.0, "second/approx_kl": divergence})
    assert rate.at(0.0) == pytest.approx(0.01 * LEAST)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_other_schedules_do_not_look_at_the_divergence(schedule: Any) -> None:
    rate = LearningRate(0.01, schedule, target=0.01)
    before = rate.at(0.3)
    rate.learned({"ppo_actor/approx_kl": 9.0})
    assert rate.at(0.3) == before
    assert not rate.warnings


async def test_a_run_whose_policy_moves_too_far_learns_more_slowly() -> None:
    final = await Trainer(small_config(epochs=4, learning=ADAPTIVE)).run()
    assert final.loss_stats is not None
    assert final.loss_stats["learning_rate"] == pytest.approx(0.02 / 1.5**3)


@pytest.mark.slow
async def test_a_resumed_run_goes_on_with_the_rate_that_it_had(tmp_path: Path) -> None:
    config = config_in(tmp_path / "whole", learning=ADAPTIVE)
    whole = await Trainer(config).run()
    interrupted = replace(config, run_dir=tmp_path / "run")
    await Trainer(for_epochs(interrupted, 3)).run()
    assert_same(whole, await Trainer(interrupted, resume=tmp_path / "run").run())


async def test_losses_that_tell_no_divergence_are_learned_with_a_constant_rate_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = small_config(epochs=3, learning=ADAPTIVE)
    config = replace(config, losses=replace(config.losses, names=("ppo_critic",)))
    with caplog.at_level(logging.WARNING):
        final = await Trainer(config).run()
    assert final.loss_stats is not None
    assert final.loss_stats["learning_rate"] == pytest.approx(0.02)
    assert caplog.text.count("no loss tells how far the policy has moved") == 1
