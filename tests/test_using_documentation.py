"""The code in docs/using.md and in the README's section about it, run in the folder that a run is in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from orchestrator import PolicyConfig, Trainer
from tests.documentation import code_blocks, text_of
from tests.orchestrator.training import small_config
from tests.paths import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_the_documented_code_acts(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    policy = PolicyConfig(network=network, hidden_sizes=(8,), lstm_size=4)
    config = small_config(epochs=2, run_dir=tmp_path / "runs" / "first", policy=policy)
    anyio.run(Trainer(config).run)
    names: dict[str, Any] = {}
    blocks = code_blocks(text_of("using.md"))
    if network == "mlp":
        (of_readme,) = (block for block in code_blocks((PROJECT / "README.md").read_text()) if "load_policy" in block)
        blocks.insert(0, of_readme)
    else:  # the first page of the text is about policies without memory
        blocks[0] = "from orchestrator import load_policy\npolicy = load_policy('runs/first')"
    for block in blocks:
        exec(compile(block, "docs/using.md", "exec"), names)
    assert names["action"] in (0, 1)
    assert names["policy"].recurrent == (network == "lstm")
    assert names["state"].shape == ((8,) if network == "lstm" else (0,))
