"""`staleness = "auto"`: the least that hides collection behind learning, found in the first epochs of a run."""

from __future__ import annotations

import logging
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import CheckpointsConfig, ConfigurationError, LearningConfig, Trainer
from orchestrator.loop.hidden_collection import HiddenCollection
from orchestrator.loop.policy_versions import WHOLE_EPOCHS
from state.policy_point import PolicyPoint
from state.trainer_state import TrainerState
from tests.orchestrator.training import small_config

pytestmark = pytest.mark.slow

EPOCHS = 10


@pytest.mark.parametrize(
    ("collecting", "learning", "expected"),
    [
        ([9.0, 0.4, 0.4, 0.4], [9.0, 2.0, 2.0], 0.25),
        ([9.0, 0.2, 0.3, 7.0], [9.0, 2.0, 2.0], 0.1875),
        ([1.0, 2.0, 2.0], [1.0, 2.0, 2.0], 1.0),
        ([1.0, 0.0, 0.0], [1.0, 2.0, 2.0], 0.0625),
        ([1.0], [1.0], 1.0),
        ([], [], 1.0),
    ],
)
def test_it_is_what_medians_and_a_margin_say(collecting: list[float], learning: list[float], expected: float) -> None:
    hidden = HiddenCollection(16)
    for seconds in collecting:
        hidden.collected(seconds)
    for seconds in learning:
        hidden.learned(seconds)
    assert hidden.staleness() == expected


def weights(state: TrainerState) -> dict[str, Any]:
    assert state.policy is not None
    return {name: array.copy() for name, array in state.policy.tensors.items()}


def same(first: TrainerState, second: TrainerState) -> bool:
    others = weights(second)
    return all(np.array_equal(array, others[name]) for name, array in weights(first).items())


@pytest.mark.anyio
async def test_what_was_found_is_written_down_and_gives_the_same_bits_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = CheckpointsConfig(every=3, keep=0)
    learning = LearningConfig(update_epochs=8, minibatches=4)  # which takes longer than to collect
    config = small_config(
        epochs=EPOCHS, run_dir=tmp_path / "auto", staleness="auto", checkpoints=checkpoints, learning=learning
    )
    trainer = Trainer(config)
    points: list[PolicyPoint] = []
    with caplog.at_level(logging.INFO, "orchestrator"):
        async with trainer.start() as run:
            async for state in run.states():
                assert state.experience is not None
                points.append(state.experience.policy_point)
            found = run.config.staleness
            whole = await run.result()
    assert isinstance(found, float)
    assert 0 < found <= 1
    assert f"staleness = {found:g}" in caplog.text
    assert tomllib.loads((tmp_path / "auto" / "config.toml").read_text())["staleness"] == found
    assert points[:WHOLE_EPOCHS] == [PolicyPoint(0), *map(PolicyPoint, range(WHOLE_EPOCHS - 1))]

    fixed = replace(config, run_dir=tmp_path / "fixed", staleness=found)
    assert same(whole, await Trainer(fixed).run())
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = Trainer(branch, resume=tmp_path / "auto" / "checkpoints" / "00000009")
    assert resumed.config.staleness == found
    assert same(whole, await resumed.run())


@pytest.mark.anyio
async def test_a_run_that_has_not_found_it_yet_resumes_with_what_its_settings_say_by_now(tmp_path: Path) -> None:
    checkpoints = CheckpointsConfig(every=3, keep=0)
    config = small_config(epochs=4, run_dir=tmp_path / "run", staleness="auto", checkpoints=checkpoints)
    part = await Trainer(config).run()
    assert part.epoch < WHOLE_EPOCHS
    longer = replace(config, total_agent_steps=(EPOCHS - 1) * config.steps_per_epoch + 1)
    file = tmp_path / "run" / "config.toml"
    file.write_text(file.read_text().replace('staleness = "auto"', "staleness = 0.25"))
    whole = await Trainer(replace(longer, run_dir=tmp_path / "whole", staleness=0.25)).run()
    resumed = Trainer(replace(longer, staleness="auto"), resume=tmp_path / "run")
    assert resumed.config.staleness == 0.25
    assert same(whole, await resumed.run())


@pytest.mark.anyio
async def test_another_staleness_is_none_to_resume_with(tmp_path: Path) -> None:
    config = small_config(epochs=4, run_dir=tmp_path / "run", staleness="auto")
    await Trainer(config).run()
    longer = replace(config, total_agent_steps=2 * config.total_agent_steps, staleness=3)
    with pytest.raises(ConfigurationError, match="staleness = 3"):
        await Trainer(longer, resume=tmp_path / "run").run()
