"""What the run takes of the machine: processors, memory, and GPUs where NVIDIA's library is there to ask."""

from __future__ import annotations

import contextlib
import importlib
import threading
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS = 5.0
"""Between two looks: one reads a file for each process of the machine."""
FIRST_SECONDS = 0.3
"""Before the first look, so that short runs have one."""


class SystemUsage:
    """Looks every so often, in a separate thread, while it is entered; `latest` is what was seen last.

    "The run" is this process and its descendants: the workers, and what else the program has started.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.latest: Mapping[str, float] = {}
        self._seconds = seconds
        self._over = threading.Event()
        self._processes: dict[int, psutil.Process] = {}
        self._gpus = _Gpus()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        self._over.clear()
        self.thread = threading.Thread(target=self._watch, name="system usage", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Ends the thread, without waiting for it."""
        self._over.set()

    def _watch(self) -> None:
        with contextlib.suppress(psutil.Error, OSError):
            self.look()  # the first reading of each is over no time and means nothing
        while not self._over.wait(self._seconds if self.latest else min(self._seconds, FIRST_SECONDS)):
            with contextlib.suppress(psutil.Error, OSError):
                self.latest = self.look()

    def look(self) -> dict[str, float]:
        """The metrics, over the time since the last look where they are about time."""
        own = psutil.Process()
        seen = {
            "system/cpu": psutil.cpu_percent() / 100,
            "system/memory": psutil.virtual_memory().percent / 100,
            "system/host_memory": float(own.memory_info().rss),
        }
        cores = memory = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.Error):  # it has ended in the meantime
                cores += process.cpu_percent() / 100
                memory += process.memory_info().rss
        return seen | {"system/run_cpu": cores, "system/run_memory": memory} | self._gpus.look()

    def _family(self) -> list[psutil.Process]:
        """This process and its descendants, each as the object that knows its processor time at the last look."""
        own = psutil.Process()
        known = self._processes
        self._processes = {}
        for process in (own, *own.children(recursive=True)):
            process = known.get(process.pid, process)
            with contextlib.suppress(psutil.Error):
                if process.pid not in known:
                    process.cpu_percent()
                self._processes[process.pid] = process
        return list(self._processes.values())


class _Gpus:
    """NVIDIA's GPUs, through the package nvidia-ml-py; none where it, or the driver, is missing."""

    def __init__(self) -> None:
        self._library: Any = None
        with contextlib.suppress(ImportError):
            self._library = importlib.import_module("pynvml")
        self._handles: list[Any] | None = None

    def look(self) -> dict[str, float]:
        library, seen = self._library, dict[str, float]()
        if library is None:
            return seen
        try:
            if self._handles is None:
                self._handles = []
                library.nvmlInit()
                count = library.nvmlDeviceGetCount()
                self._handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            for index, handle in enumerate(self._handles):
                memory = library.nvmlDeviceGetMemoryInfo(handle)
                seen[f"system/gpu/{index}/memory"] = float(memory.used)
                seen[f"system/gpu/{index}/memory_total"] = float(memory.total)
                seen[f"system/gpu/{index}/utilization"] = library.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except library.NVMLError:  # no driver, or one that does not tell
            pass
        return seen
