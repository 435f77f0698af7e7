"""Folders of runs for the tests of the report: written here, or by a real run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from orchestrator.tracing.trace import Trace

if TYPE_CHECKING:
    from pathlib import Path


def record(epoch: int, **changes: Any) -> dict[str, Any]:
    """An epoch of 0.5 s: 0.3 s of learning and 0.1 s of collecting on the critical path."""
    return {
        "epoch": epoch,
        "agent_step": 1000 * epoch,
        "sps": 2000.0,
        "time/seconds": 0.5 * epoch,
        "time/epoch": 0.5,
        "time/collect": 0.4,
        "time/wait_collect": 0.05,
        "time/hooks_collect": 0.0,
        "time/host_collect": 0.05,
        "time/learn": 0.3,
        "time/wait_learn": 0.1,
        "time/hooks_learn": 0.05,
        "time/host_learn": 0.05,
        "time/critical_learn": 0.3,
        "time/critical_collect": 0.1,
        "time/critical_hooks": 0.05,
        "time/critical_host": 0.05,
        "time/policy_lag": 0.002,
        "rollout/episode_return": 10.0 * epoch,
        "rollout/recent_return": 9.0 * epoch,
        "loss/ppo_actor/entropy": 1 / epoch,
        "hook/upload/busy_seconds": 0.2 * epoch,
        "hook/upload/blocked_seconds": 0.05 * epoch,
        "hook/upload/handled": epoch,
        "hook/upload/failed": 0,
        "hook/upload/coalesced": 1,
        "hook/upload/dropped": 1,
        "hook/upload/lag": epoch % 3,
    } | changes


def write_run(folder: Path, records: list[dict[str, Any]], *, environment: str = "CartPole-v1") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'environment = "{environment}"\nstaleness = 1\n')
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder


def write_trace(folder: Path, epochs: int) -> None:
    """A trace of epochs of 0.5 s, as `record` has them."""
    now = 0.0
    trace = Trace(clock=lambda: now)
    for epoch in range(epochs):
        now += 0.5
        trace.activity("learn", "work", now - 0.4, now - 0.1)
        trace.epoch(epoch, now - 0.5, now)
        trace.worker_call("evaluator", "evaluate", now - 0.3, now - 0.2)
    (folder / "trace.json").write_text(trace.text(trace.take()) + Trace.END)
