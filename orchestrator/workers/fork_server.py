"""The process that workers are forked from. It imports nothing of ours or of torch's here: `warm_up` must be cheap."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing import forkserver

# Imported once by the fork server, so that each worker starts with it.
_PRELOAD = [
    "torch",
    "gymnasium",
    "orchestrator.collection.service",
    "orchestrator.evaluation.service",
    "orchestrator.learning.learner",
    "orchestrator.workers.serve",
]
_ENVIRONMENT = {
    # Threads of one computation wait for each other by spinning unless OpenMP is told otherwise when it is loaded; on
    # a machine whose cores are all busy, spinning makes the computation many times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # By default glibc gives the memory of each large tensor back to the system, which must then zero its pages anew
    # for the next one: thousands of page faults per minibatch.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(2_000_000_000),
}
"""Of the workers, except where the user has set something else."""
context = multiprocessing.get_context("forkserver")
_environment = threading.Lock()  # the process has one environment, which is changed for a moment here


def warm_up() -> None:
    """Start the fork server without waiting for it, so that it imports torch while the caller does something else."""
    with _environment:
        _start()


def _start() -> None:
    context.set_forkserver_preload(_PRELOAD)
    own = {name: value for name, value in _ENVIRONMENT.items() if not os.environ.get(name)}
    os.environ.update(own)
    try:
        forkserver.ensure_running()
    finally:
        for name in own:
            del os.environ[name]
