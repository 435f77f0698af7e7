"""What it costs the training to have all metrics written.

    python scripts/bench/metrics_cost.py [--repeats 5] [--environments 64] [--epochs 80]

Epoch time (CartPole-v1, about 50 ms an epoch with the default of 64 environments) without any metrics, and with
metrics.jsonl, TensorBoard, Prometheus (scraped once a second), a heartbeat and progress as plain lines. Both trainings
go on side by side in turns within one process: a few epochs of one while the other is paused, so that load from
elsewhere hits both alike. Prints the ratio of the median epoch times, and the processor time that the host spends.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))
from measure import WARM_UP, arguments, describe_machine, in_subprocess, spread, verdict

if TYPE_CHECKING:
    from orchestrator import Hook, Run, TrainerConfig
    from state import TrainerState

GOAL = 1.02
TURN = 10
"""Epochs that one training makes before it is the other's turn."""
SETTLE = 2
"""Epochs at the beginning of a turn that are not timed: the pipeline fills again."""
DRAIN = 0.15
"""Seconds after a turn in which what has begun is finished."""


def configured(environments: int, run_dir: Path | None) -> TrainerConfig:
    from orchestrator import CheckpointsConfig, CollectionConfig, MetricsConfig, TrainerConfig

    config = TrainerConfig(
        total_agent_steps=10**9,
        collection=CollectionConfig(num_environments=environments, horizon=128),
        checkpoints=CheckpointsConfig(enabled=False),
        metrics=MetricsConfig(jsonl=False),
    )
    if run_dir is None:
        return config
    metrics = MetricsConfig(tensorboard=True, prometheus=True, prometheus_port=0, heartbeat=1.0)
    return replace(config, run_dir=run_dir, metrics=metrics)


async def turn(run: Run, epochs: int) -> tuple[list[float], float]:
    """Seconds of each epoch of a turn, and processor seconds of the host per epoch."""
    import anyio

    ends: list[float] = []
    state: TrainerState | None = run.state
    run.resume()
    begin = 0.0
    while len(ends) < SETTLE + epochs:
        state = await run.next_state(state)
        ends.append(time.perf_counter())
        if len(ends) == SETTLE:
            begin = time.process_time()
    host = (time.process_time() - begin) / epochs
    run.pause()
    with anyio.move_on_after(DRAIN):  # with staleness, an epoch may be on its way
        while state is not None:
            state = await run.next_state(state)
    return [after - before for before, after in zip(ends[SETTLE - 1 :], ends[SETTLE:], strict=False)], host


def compare(environments: int, epochs: int) -> dict[str, dict[str, float]]:
    """Median epoch seconds and host seconds, without and with."""
    import anyio
    import httpx
    from rich.console import Console

    from orchestrator import MetricsHook, ProgressHook, Trainer
    from orchestrator.metrics import Prometheus

    seconds: dict[str, list[float]] = {"without": [], "with": []}
    host: dict[str, list[float]] = {"without": [], "with": []}

    async def scrape(endpoint: Prometheus) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                await anyio.sleep(1.0)
                await client.get(f"http://127.0.0.1:{endpoint.port}/metrics")

    async def main(folder: Path) -> None:
        progress: list[Hook] = [ProgressHook(10**9, "plain", Console(file=io.StringIO()))]
        plain = Trainer(configured(environments, None))
        metered = Trainer(configured(environments, folder / "run"), hooks=progress)
        [metrics] = (hook for hook in metered.hooks if isinstance(hook, MetricsHook))
        [endpoint] = (sink for sink in metrics.configured if isinstance(sink, Prometheus))
        async with plain.start() as first, metered.start() as second, anyio.create_task_group() as tasks:
            runs = {"without": first, "with": second}
            for run in runs.values():
                run.pause()
            for run in runs.values():
                await turn(run, WARM_UP)
            tasks.start_soon(scrape, endpoint)
            for number in range(2 * (epochs // TURN)):
                name = list(runs)[(number + number // 2) % 2]  # a b b a: what drifts hits both alike
                one, spent = await turn(runs[name], TURN)
                seconds[name] += one
                host[name].append(spent)
            tasks.cancel_scope.cancel()
            for run in runs.values():
                run.stop()
                run.resume()

    with tempfile.TemporaryDirectory() as folder:
        anyio.run(main, Path(folder))
    return {
        name: {"epoch": statistics.median(seconds[name]), "host": statistics.median(host[name])} for name in seconds
    }


def main() -> None:
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--environments", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=80, help="timed epochs of each kind and repeat")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(compare(*map(int, chosen.one))))
        return
    print(describe_machine())
    results = [in_subprocess(__file__, "--one", chosen.environments, chosen.epochs) for _ in range(chosen.repeats)]
    for name in ("without", "with"):
        epochs, host = ([result[name][what] * 1e3 for result in results] for what in ("epoch", "host"))
        print(
            f"{name:8} metrics  {spread(epochs)} ms per epoch, {spread(host)} ms of it are processor time of the host"
        )
    ratios = [result["with"]["epoch"] / result["without"]["epoch"] for result in results]
    print(f"ratio  {spread(ratios)}  ({verdict(statistics.median(ratios), GOAL)})")


if __name__ == "__main__":
    main()
