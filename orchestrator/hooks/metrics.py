"""`metrics.jsonl`: one object per epoch with everything that is known about it."""

from __future__ import annotations

import json
import math
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import anyio

from orchestrator.hooks.hook import Hook

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from orchestrator.hooks.hook import RunContext
    from state.trainer_state import TrainerState


class MetricsHook(Hook):
    """Appends `metrics(state)` to a file after every epoch; each line is flushed, so that a kill loses at most one."""

    name = "metrics"
    overflow = "block"
    max_lag = 16

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: anyio.AsyncFile[str]

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        await anyio.Path(self._path.parent).mkdir(parents=True, exist_ok=True)
        async with await anyio.open_file(self._path, "a", encoding="utf-8") as self._file:
            yield

    async def on_epoch_end(self, state: TrainerState) -> None:
        line = json.dumps(metrics(state, self.run), allow_nan=False)
        await self._file.write(f"{line}\n")
        await self._file.flush()


def metrics(state: TrainerState, run: RunContext) -> dict[str, float | None]:
    """The epoch's record under stable names; numbers that are not finite become None.

    `epoch`, `agent_step`, `policy_version`, `sps` (agent steps per second of the epoch), `rollout/…` (means over the
    episodes that ended), `loss/…` (means over the minibatches), `eval/…`, `time/…` (seconds: of the run, and of the
    epoch by activity), `hook/<name>/…` (how each hook keeps up).
    """
    record: dict[str, float | None] = {
        "epoch": state.epoch,
        "agent_step": state.agent_step,
        "policy_version": state.policy_version,
    }
    if state.timer is not None:
        record["sps"] = state.timer.lap_rate("agent_step")
        record["time/seconds"] = state.timer.seconds
        record["time/epoch"] = state.timer.lap_seconds
        record |= {f"time/{name}": seconds for name, seconds in state.timer.lap_timer_seconds.items()}
    if state.stats_tracker is not None:
        record |= {"rollout/episode_return": None, "rollout/episode_length": None}
        record |= {f"rollout/{name}": mean for name, mean in state.stats_tracker.means().items()}
        record["rollout/episodes"] = state.stats_tracker.episodes
        record["rollout/recent_return"] = state.stats_tracker.recent_mean("episode_return")
    if state.loss_stats is not None:
        record |= {f"loss/{name}": value for name, value in state.loss_stats.items()}
    if state.eval_scores is not None:
        record |= state.eval_scores.metrics()
        record["eval/policy_version"] = state.eval_scores.policy_version
    for name, hook in run.hook_statistics().items():
        numbers = {field: value for field, value in asdict(hook).items() if not isinstance(value, str)}
        record |= {f"hook/{name}/{field}": value for field, value in numbers.items()}
        record[f"hook/{name}/hidden_seconds"] = hook.hidden_seconds
    return {name: _finite(value) for name, value in record.items()}


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
