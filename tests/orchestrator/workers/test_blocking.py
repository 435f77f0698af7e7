"""A worker whose host has no event loop, such as an environment worker."""

from __future__ import annotations

import os
import signal

import pytest

from orchestrator.workers.blocking import BlockingWorker, close_workers
from orchestrator.workers.reply import WorkerCrashed

pytestmark = pytest.mark.slow


class Killed:
    def step(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_whoever_asks_a_killed_worker_again_hears_the_same_of_its_end() -> None:
    worker = BlockingWorker("process", "stepper", Killed)
    try:
        worker.receive()
        for _ in range(2):
            with pytest.raises(WorkerCrashed, match="worker 'stepper' died during 'step': killed by SIGKILL"):
                worker.call("step")
    finally:
        close_workers([worker], grace=0)
