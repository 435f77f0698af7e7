"""The code in docs/checkpoints.md, run in the folder that a run is in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import CheckpointFolder, CheckpointsConfig, ConfigurationError, Trainer
from tests.documentation import code_blocks, text_of
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_the_documented_code_resumes_a_run_and_takes_care_of_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = CheckpointsConfig(every=1, keep=0)
    await Trainer(small_config(epochs=5, run_dir=tmp_path / "runs" / "first", checkpoints=checkpoints)).run()
    before = CheckpointFolder(tmp_path / "runs" / "first" / "checkpoints").list()  # a slow disk skips some
    names: dict[str, Any] = {}
    for block in code_blocks(text_of("checkpoints.md")):
        exec(compile(block, "docs/checkpoints.md", "exec"), names)
    assert names["trainer"].config.total_agent_steps == 2_000_000
    assert [path.absolute() for path in names["folder"].list()] == before
    assert names["oldest_policy"]
    assert "would be deleted" in capsys.readouterr().out


async def test_a_run_resumes_in_its_folder_from_an_older_checkpoint_once_the_newer_ones_are_moved_aside(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    config = small_config(epochs=3, run_dir=run_dir, checkpoints=CheckpointsConfig(every=1, keep=0))
    await Trainer(config).run()
    folder = CheckpointFolder(run_dir / "checkpoints")
    older = folder.list()[0]
    longer = replace(config, total_agent_steps=2 * config.total_agent_steps)
    with pytest.raises(ConfigurationError):
        await Trainer(longer, resume=older).run()
    assert folder.rewind(older)
    final = await Trainer(longer, resume=older).run()
    assert final.epoch > 3
    assert folder.list()[-1].name == f"{final.epoch:08d}"
