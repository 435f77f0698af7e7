"""How fast a web service answers while it trains: latency of requests over loopback, idle and training.

    python scripts/bench/service_latency.py [--seconds 10]

The service is scripts/examples/service.py under uvicorn, in a process of its own; requests come every 10 ms.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import describe_machine

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--environments", type=int, default=64)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "scripts.examples.service:make"]
    server = subprocess.Popen([*command, "--port", str(port), "--log-level", "error", "--no-access-log"], cwd=ROOT)
    try:
        base = f"http://127.0.0.1:{port}"
        wait_for(base)
        print(describe_machine())
        report("idle", latencies(base, arguments.seconds))
        body = {"total_agent_steps": 10**9, "collection": {"num_environments": arguments.environments}}
        request(f"{base}/run", body)
        while not (request(f"{base}/run").get("epoch", 0)) > 3:
            time.sleep(0.05)
        report("training", latencies(base, arguments.seconds))
    finally:
        server.terminate()
        server.wait()


def request(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=60) as response:
        return json.load(response)


def wait_for(base: str) -> None:
    for _ in range(600):
        try:
            request(f"{base}/run")
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("the service does not start")


def latencies(base: str, seconds: float) -> list[float]:
    """Milliseconds of each request."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        request(f"{base}/run")
        found.append((time.perf_counter() - begin) * 1e3)
        time.sleep(max(0.0, 0.01 - (time.perf_counter() - begin)))
    return found


def report(name: str, milliseconds: list[float]) -> None:
    cuts = statistics.quantiles(milliseconds, n=100)
    print(
        f"{name:9} {len(milliseconds)} requests: p50 {cuts[49]:.2f} ms, p90 {cuts[89]:.2f} ms, p99 {cuts[98]:.2f} ms, "
        f"max {max(milliseconds):.2f} ms",
        flush=True,
    )


if __name__ == "__main__":
    main()
