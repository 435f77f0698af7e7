"""The module in docs/extending.md, trained with by the names that the document gives."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator import CollectionConfig, LearningConfig, LossesConfig, PolicyConfig, Trainer, TrainerConfig
from tests.documentation import code_blocks, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own.py").write_text("\n\n".join(code_blocks(text_of("extending.md"))))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own", None)


@pytest.mark.parametrize(
    ("network", "losses"),
    [
        ("own:network", "own:losses"),
        ("own:memory", "own:losses"),
        ("own:network", "ppo_actor ppo_critic own:imitation own:confidence"),
    ],
)
def test_the_documented_environment_network_and_losses_train(own: None, network: str, losses: str) -> None:
    config = TrainerConfig(
        environment="own:corridor",
        total_agent_steps=20 * 16 * 32,
        collection=CollectionConfig(num_environments=16, horizon=32, environment_options={"length": 3}),
        learning=LearningConfig(learning_rate=3e-3),
        policy=PolicyConfig(network=network),
        losses=LossesConfig(names=tuple(losses.split())),
    )
    trainer = Trainer(config)
    right: dict[int, float | None] = {}

    @trainer.on_epoch_end(overflow="block")
    async def note(state: TrainerState) -> None:
        assert state.loss_stats is not None
        right[state.epoch] = state.loss_stats.get("imitation/right")

    final = anyio.run(trainer.run)
    assert [epoch for epoch, share in right.items() if share is not None] == [1, 2, 3, 4, 5], "its schedule"
    assert right[5] == pytest.approx(1.0, abs=0.05)
    assert final.stats_tracker is not None
    assert final.stats_tracker.recent_mean("episode_return") > 0.9, "three steps to the end, at a hundredth each"
    assert final.stats_tracker.rollout["hint"]
