"""What docs/metrics.md promises, through `Trainer`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from losses import GradientReporter, UpdateEpochsTuner
from orchestrator import (
    EvaluationConfig,
    Hook,
    MetricsHook,
    PolicyConfig,
    Trainer,
    TypePolicy,
)
from state.trainer_state import TrainerState
from tests.documentation import code_blocks, text_of
from tests.orchestrator.training import losses_with, small_config
from tests.promises.acting import trained

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class StopOnceScored(Hook):
    """An evaluation takes as many epochs as it takes."""

    name = "stop_once_scored"

    async def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch >= 4 and state.eval_scores is not None:
            self.run.stop("an evaluation has come")


async def test_every_documented_metric_is_in_the_records_of_a_run_that_has_it(tmp_path: Path) -> None:
    tables = text_of("metrics.md").split("## Names")[1].split("## Sinks")[0]
    rows = re.findall(r"^\| (`.*?`) \|", tables, flags=re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert len(documented) > 50
    # Those of machines with a GPU, those that take a while to be there, and what is only there when it happens.
    elsewhere = {name for name in documented if name.startswith("system/")} | {
        "loss/skipped_minibatches",
        "loss/replayed_minibatches",
        "rollout/replayed_steps",
        "warnings/<kind>",
    }
    losses = [*losses_with(GradientReporter(every=1)), UpdateEpochsTuner(target_kl=0.01)]
    await trained(
        StopOnceScored(),
        epochs=10**6,
        staleness=1,
        run_dir=tmp_path / "run",
        losses=losses,
        environment="tests.environments:make_wandering",
        evaluation=EvaluationConfig(every=1, episodes=1, num_environments=1),
    )
    game = EvaluationConfig(every=1, episodes=1, num_environments=1)
    await trained(
        StopOnceScored(), epochs=10**6, run_dir=tmp_path / "game", environment="tests.games:Matching", evaluation=game
    )
    await trained(epochs=2, run_dir=tmp_path / "lives", environment="tests.games:Respawning")
    await trained(epochs=2, run_dir=tmp_path / "cells", cells=2)
    types = PolicyConfig(hidden_sizes=(8,), by_type=(TypePolicy(type="seeker"), TypePolicy(type="hider")))
    await trained(epochs=2, run_dir=tmp_path / "types", environment="tests.games:HideAndSeek", policy=types)
    lines, *of_others = (
        [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("run", "game", "lives", "cells", "types")
    )
    keys = set[str]().union(*lines, *(line for other in of_others for line in other))
    always = {"epoch", "agent_step", "rollout/episode_return", "rollout/episode_length", "time/seconds"}
    assert lines
    assert all(always <= line.keys() for line in lines)
    counts = {"delivered", "handled", "failed", "coalesced", "dropped", "abandoned", "retried"}
    assert {key for key in keys if key.startswith("hook/metrics/")} >= {f"hook/metrics/{count}" for count in counts}
    for name in documented - elsewhere:
        pattern = re.sub(r"<\w+>", ".+", re.escape(name))
        assert any(re.fullmatch(pattern, key) for key in keys), f"{name} is documented, and not there"
    assert "loss/update_epochs_tuner/kl" in keys
    assert "loss/update_epochs_tuner/update_epochs" in keys
    assert any(key.startswith("loss/gradient_norm/") for key in keys)
    assert "rollout/steps" in keys, "a number in the infos of the last steps"


async def test_a_sink_of_ones_own_can_stop_the_run() -> None:
    class Stopping:
        def open(self, run: Any) -> None:
            self.run = run

        def write(self, record: Any) -> None:
            if record["epoch"] == 3:
                self.run.stop("the sink has seen enough")

        def close(self) -> None: ...

    async with Trainer(small_config(epochs=10**6), hooks=[MetricsHook([Stopping()])]).start() as run:
        with anyio.fail_after(100):
            final = await run.result()
    assert run.stop_reason == "the sink has seen enough"
    assert final.epoch >= 3


@pytest.mark.slow
async def test_the_documented_metrics_code_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = small_config(epochs=3, run_dir=tmp_path / "runs" / "first")
    made: list[TrainerState] = []
    reading, *blocks = code_blocks(text_of("metrics.md"))
    for block in blocks:
        names: dict[str, Any] = {}
        exec(compile(block, "docs/metrics.md", "exec"), names)
        shown: Trainer = names["trainer"]
        own = [hook for hook in shown.hooks if "stop_request" in hook.name or isinstance(hook, MetricsHook)]
        config = replace(small, run_dir=tmp_path / "runs" / ("first" if "Csv" in names else f"other{len(made)}"))
        made.append(await Trainer(config, hooks=own, losses=shown.losses).run())
    names = {}
    exec(compile(reading, "docs/metrics.md", "exec"), names)
    assert len(names["returns"]) == made[0].epoch
    table = (tmp_path / "runs" / "first" / "returns.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in table] == list(range(1, made[0].epoch + 1))
