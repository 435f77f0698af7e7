"""Where records of metrics go: files, dashboards, or a sink of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from state.lazy_names import lazy_names

if TYPE_CHECKING:
    from orchestrator.metrics.jsonl import JsonLines as JsonLines
    from orchestrator.metrics.jsonl import truncate_records as truncate_records
    from orchestrator.metrics.prometheus import Prometheus as Prometheus
    from orchestrator.metrics.sink import MissingExtra as MissingExtra
    from orchestrator.metrics.sink import Record as Record
    from orchestrator.metrics.sink import RunInfo as RunInfo
    from orchestrator.metrics.sink import Sink as Sink
    from orchestrator.metrics.tensorboard import TensorBoard as TensorBoard
    from orchestrator.metrics.trackio import Trackio as Trackio
    from orchestrator.metrics.wandb import Wandb as Wandb
else:
    __getattr__, __dir__ = lazy_names(__name__)
