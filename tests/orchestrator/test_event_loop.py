"""The event loop of whoever embeds a training stays free."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator import CheckpointsConfig, EvaluationConfig, MetricsConfig, Trainer
from orchestrator.snapshots.resume import find_resume_source
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_nothing_blocks_it_in_a_run_with_everything_switched_on_nor_in_going_on_with_it(tmp_path: Path) -> None:
    blockbuster = pytest.importorskip("blockbuster")  # knows asyncio only
    folder = tmp_path / "run"
    config = small_config(
        epochs=5,
        backend="process",
        run_dir=folder,
        checkpoints=CheckpointsConfig(every=2, keep=1, upload=(tmp_path / "store").as_uri()),
        evaluation=EvaluationConfig(every=2, episodes=2),
        metrics=MetricsConfig(tensorboard=True, trace=True, prometheus=True, prometheus_port=0, heartbeat=0.05),
    )

    async def main() -> None:
        with blockbuster.blockbuster_ctx():
            first = await Trainer(config).run()
            source = await anyio.to_thread.run_sync(find_resume_source, folder)
            longer = replace(source.config, total_agent_steps=2 * config.total_agent_steps)
            assert (await Trainer(longer, resume=source).run()).epoch > first.epoch

    anyio.run(main)
    assert (folder / "metrics.jsonl").is_file()
    assert list((tmp_path / "store" / "run" / "checkpoints").iterdir())
