"""Workers: stateful objects outside the event loop, driven by requests. One protocol, several backends."""

from orchestrator.workers.interrupt import Interrupt
from orchestrator.workers.worker import Worker, WorkerCrashed, WorkerStatistics, start_worker

__all__ = ["Interrupt", "Worker", "WorkerCrashed", "WorkerStatistics", "start_worker"]
