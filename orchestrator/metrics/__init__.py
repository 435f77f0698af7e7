"""Where records of metrics go: files, dashboards, or a sink of one's own."""

from __future__ import annotations

from orchestrator.metrics.jsonl import JsonLines, truncate_records
from orchestrator.metrics.prometheus import Prometheus
from orchestrator.metrics.sink import MissingExtra, Record, RunInfo, Sink
from orchestrator.metrics.tensorboard import TensorBoard
from orchestrator.metrics.wandb import Wandb

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
