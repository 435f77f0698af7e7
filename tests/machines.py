"""A Ray cluster whose machines are raylets on this one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from typing import TYPE_CHECKING, Any

import anyio
import psutil

from tests.orchestrator.training import small_config, worker_processes

if TYPE_CHECKING:
    from orchestrator import TrainerConfig

MARK = "ORCHESTRATOR_TEST_CLUSTER"
CORES = 2
RAYS = {
    "RAY_worker_niceness": "0",  # otherwise 15: whatever else the machine does comes first
    # A raylet that is gone refuses to answer, and is missed after 5 times; one that is only slow has 10 s each time.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
}
"""What Ray's processes are told."""


class Machines:
    """A head without cores, and machines with `cores`, by default as many as a cell with one collector needs."""

    def __init__(self, count: int, cores: int = CORES) -> None:
        from ray.cluster_utils import Cluster

        self.mark = uuid.uuid4().hex
        os.environ.update(RAYS | {MARK: self.mark})
        # Nobody adds machines by themselves here, or reads what the others print.
        head = {"num_cpus": 0, "no_monitor": True, "include_log_monitor": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self._cores = cores
        for _ in range(count):
            self.add()

    def add(self) -> None:
        os.environ.update(RAYS | {MARK: self.mark})
        self._cluster.add_node(num_cpus=self._cores)

    def replace_lost(self) -> None:
        """Have as many machines as before some were lost."""
        for node in [node for node in self._cluster.worker_nodes if node.dead_processes()]:
            self._cluster.remove_node(node)
            self.add()

    def processes(self) -> set[int]:
        """Workers on these machines, and what they come from."""
        found: set[int] = set()
        not_there: set[int] = set()
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # a zombie, say
                if "orchestrator.workers.forking" in " ".join(child.cmdline()):
                    not_there |= {one.pid for one in (child, *child.children(recursive=True))}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get(MARK) == self.mark and process.status() != "zombie"
                if (
                    ours
                    and process.pid not in not_there
                    and "orchestrator.workers.forking" in " ".join(process.cmdline())
                ):
                    found.add(process.pid)
        return found

    @property
    def head(self) -> psutil.Process:
        """The raylet of the machine that the tests run on."""
        return psutil.Process(self._cluster.head_node.all_processes["raylet"][0].process.pid)

    def raylets(self) -> list[psutil.Process]:
        """Those of the machines beside the head."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self._cluster.worker_nodes]
        return [psutil.Process(pid) for pid in raylets if psutil.pid_exists(pid)]

    def raylets_with_workers(self) -> list[psutil.Process]:
        """The raylets of machines that a cell is on."""
        return [
            raylet
            for raylet in self.raylets()
            if any("orchestrator.workers.forking" in " ".join(one.cmdline()) for one in raylet.children(recursive=True))
        ]

    async def assert_nothing_left(self) -> None:
        """Soon."""
        assert not worker_processes()
        with anyio.fail_after(100):
            while left := self.processes():
                await anyio.sleep(0.1)
        assert not left

    def kill(self) -> None:
        """All at once, the head too."""
        for node in (self._cluster.head_node, *self._cluster.worker_nodes):
            for processes in node.all_processes.values():
                for one in processes:
                    one.process.kill()

    def close(self) -> None:
        self._cluster.shutdown()
        for name in (MARK, *RAYS):
            os.environ.pop(name, None)


def config_on(machines: Machines | None, *, cells: int, shards: int, collectors: int, **settings: Any) -> TrainerConfig:
    """A small run, whose cells are on the machines where there are several."""
    settings = {"epochs": 6, "num_environments": 8} | settings
    config = small_config(backend="process", collectors=collectors, **settings)
    return dataclasses.replace(
        config,
        cells=cells,
        cluster=None if machines is None or cells == 1 else machines.address,
        learning=dataclasses.replace(config.learning, shards=shards),
    )
