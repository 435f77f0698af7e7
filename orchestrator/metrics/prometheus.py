"""The newest record as a page for Prometheus to scrape; needs the extra `prometheus`."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from orchestrator.config.paths import PATH
from orchestrator.metrics.sink import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.metrics.sink import Record, RunInfo

_log = logging.getLogger("orchestrator.metrics")
_HOOK = re.compile(r"hook/(?P<hook>.+)/(?P<metric>\w+)")


class Prometheus:
    """Serves `http://<host>:<port>/metrics`. Port 0 is any free one, which is said in the log and in `port`.

    Metrics are gauges called `orchestrator_` and the metric's name with underscores; those of hooks have the hook as
    a label, and all have the run. Nothing is computed until it is requested.

    Raises MissingExtra, ValueError for an impossible port.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        require("prometheus_client", "prometheus")
        if not 0 <= port < 65536:
            raise ValueError(f"the port is {port}, expected 0 (any free one) to 65535")
        self._host = host
        self._wanted_port = port
        self.port: int | None = None
        """Where it listens, while it is open."""
        self._run_id = ""
        self._record: Record = {}
        self._server: Any = None
        self._thread: Any = None

    def open(self, run: RunInfo) -> None:
        """Raises OSError naming the address where it can't listen there."""
        from prometheus_client import CollectorRegistry, start_http_server

        self._run_id = run.run_id
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)  # pyright: ignore[reportArgumentType] - what it needs is `collect`
        try:
            self._server, self._thread = start_http_server(self._wanted_port, self._host, registry)
        except OSError as error:
            raise OSError(
                error.errno,
                f"can't listen on {self._host}:{self._wanted_port} ({error.strerror}): choose another "
                f"{PATH.metrics.prometheus_port}, or 0 for any free one",
            ) from error
        self.port = self._server.server_port
        # Nobody has chosen this port, so it must be seen, and logs are seldom shown below warnings.
        level = logging.INFO if self._wanted_port else logging.WARNING
        _log.log(level, "metrics for Prometheus at http://%s:%d/metrics", self._host, self.port)

    def write(self, record: Record) -> None:
        self._record = record

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.port = None

    def collect(self) -> Iterator[Any]:
        """For prometheus_client: the families of the newest record."""
        from prometheus_client.core import GaugeMetricFamily

        families: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for name, value in self._record.items():
            hook = _HOOK.fullmatch(name)
            source = f"hook/<hook>/{hook['metric']}" if hook else name
            family = prometheus_name(source.replace("<hook>/", ""))
            if origins.setdefault(family, source) != source:
                continue  # another metric has that name here: the first keeps it
            if family not in families:
                families[family] = GaugeMetricFamily(family, source, labels=["run", *(["hook"] if hook else [])])
            if value is not None:
                families[family].add_metric([self._run_id, *([hook["hook"]] if hook else [])], value)
        yield from families.values()


def prometheus_name(name: str) -> str:
    """What a metric is called there: `rollout/episode_return` is `orchestrator_rollout_episode_return`."""
    return "orchestrator_" + re.sub(r"\W", "_", name, flags=re.ASCII)
