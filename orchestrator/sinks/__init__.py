"""Where records of metrics go: files, dashboards, or a sink of one's own."""

from __future__ import annotations

from orchestrator.sinks.jsonl import JsonLines, truncate_records
from orchestrator.sinks.prometheus import Prometheus
from orchestrator.sinks.sink import MissingExtra, Record, RunInfo, Sink
from orchestrator.sinks.tensorboard import TensorBoard
from orchestrator.sinks.wandb import Wandb

__all__ = [
    "JsonLines",
    "MissingExtra",
    "Prometheus",
    "Record",
    "RunInfo",
    "Sink",
    "TensorBoard",
    "Wandb",
    "truncate_records",
]
