"""How several cells scale: agent steps per second with the same work for each, what they send, how soon a learner that
died learns again, and what to expect of more cells than there are here.

    python scripts/bench/scaling.py [--cells 1 2] [--repeats 3] [--environments 64] [--hidden 256]
        [--network-latency 50] [--gigabits 25] [--machines]

`--machines` measures, instead, how soon a run trains again that has lost a machine of a Ray cluster (the extra
`cluster`), which is several raylets on this machine: one is killed with everything that runs on it.

Every cell has `--environments`, a collector and a learner; they take turns (staleness 0), so that each cell needs one
core. The rate of n cells is compared with n times that of one, in turn, in processes of their own, and with the sum of
n runs of one cell side by side, which have nothing to do with each other, each on a core of its own (as far as there
are n cores): what these lose, the machine does; what is left is the orchestrator's. Processor time is that of all
processes of a run, and depends less than the rates do on what else the machine has to do. What each cell writes for the
others is compared with the arithmetic: the gradient and a few numbers for each optimizer step.

The simulation is of discrete events: each cell computes a minibatch, for which it takes a time drawn from those that
were measured with one cell, stragglers included; then it exchanges sums with neighbors at distance 1, 2, 4, ..., and of
what is large back again, each of which waits for the other. A message takes the latency (microseconds) and its size
over the bandwidth given. What is left out: collecting, as if it were hidden, failures, and other traffic.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import WARM_UP, arguments, describe_machine, in_subprocess, percentile, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator import TrainerConfig

HORIZON, EPOCHS = 128, 12
AFTERWARDS = 3
"""Epochs that follow those measured, so that of runs side by side none is measured without the others."""
SIMULATED = [2**power for power in range(11)]
STEPS = 400
GOAL = 0.9


def configured(cells: int, hidden: int, environments: int, folder: Path | None = None) -> TrainerConfig:
    from orchestrator import CollectionConfig, LearningConfig, MetricsConfig, PolicyConfig, TrainerConfig

    config = TrainerConfig(
        total_agent_steps=10**9,
        staleness=0,
        cells=cells,
        collection=CollectionConfig(num_environments=environments * cells, horizon=HORIZON, collectors=cells),
        learning=LearningConfig(threads=1),
        policy=PolicyConfig(hidden_sizes=(hidden, hidden)),
        metrics=MetricsConfig(progress="off"),
    )
    if folder is None:
        return config
    metrics = replace(config.metrics, trace=True)
    return replace(config, run_dir=folder, metrics=metrics, checkpoints=replace(config.checkpoints, enabled=False))


def measured(cells: int, hidden: int, environments: int, core: int = -1) -> dict[str, Any]:
    """Seconds and steps of the epochs, their parts, and each minibatch of the first learner; on one core, where it is
    not negative."""
    if core >= 0:
        os.sched_setaffinity(0, {core})
    import anyio

    from orchestrator import Trainer

    processor: list[float] = []

    async def main(config: TrainerConfig) -> None:
        async with Trainer(config).start() as run:
            async for state in run.states():
                if state.epoch in (WARM_UP, WARM_UP + EPOCHS):
                    processor.append(processor_seconds())
                if state.epoch == WARM_UP + EPOCHS + AFTERWARDS:
                    run.stop()

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        anyio.run(main, configured(cells, hidden, environments, run_dir))
        records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        records = records[WARM_UP - 1 : WARM_UP + EPOCHS]
        events = json.loads((run_dir / "trace.json").read_text())
    events = events if isinstance(events, list) else events["traceEvents"]
    steps = records[-1]["agent_step"] - records[0]["agent_step"]
    del records[0]
    return {
        "rate": steps / sum(record["time/epoch"] for record in records),
        "processor": (processor[1] - processor[0]) / steps,
        "epoch": statistics.median(record["time/epoch"] for record in records),
        "learn": statistics.median(record["time/learn"] for record in records),
        "exchange": statistics.median(record.get("time/exchange", 0.0) for record in records),
        "wait": statistics.median(record.get("time/wait_cells", 0.0) for record in records),
        "bytes": records[-1].get("time/exchange_bytes", 0.0),
        "steps": records[-1]["policy/minibatches"],
        "minibatches": [event["dur"] / 1e6 for event in events if event.get("cat") == "minibatch"],
    }


def processor_seconds() -> float:
    """That this program and all of its workers have used."""
    import psutil

    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def side_by_side(runs: int, hidden: int, environments: int) -> list[dict[str, Any]]:
    """What is `measured` of so many runs of one cell at the same time."""
    cores = sorted(os.sched_getaffinity(0))

    def one(run: int) -> dict[str, Any]:
        return in_subprocess(__file__, "--one", "measured", 1, hidden, environments, cores[run % len(cores)])

    with ThreadPoolExecutor(runs) as threads:
        return list(threads.map(one, range(runs)))


def gradient_bytes(hidden: int, environments: int) -> int:
    from orchestrator.environments.make import make_vector
    from orchestrator.policies import Spaces, build_policy

    config = configured(1, hidden, environments)
    environment = make_vector(config.environment, 1)
    try:
        policy = build_policy(config.policy, Spaces.of(environment), 1)
    finally:
        environment.close()
    return 4 * sum(parameter.numel() for parameter in policy.parameters())


def replaced(hidden: int, environments: int) -> dict[str, float]:
    """Seconds from a learner's death to the end of the next epoch, and of an undisturbed one."""
    import anyio
    import psutil

    from orchestrator import Trainer

    ends: list[float] = []
    died = 0.0

    async def main() -> None:
        nonlocal died
        async with Trainer(configured(2, hidden, environments)).start() as run:
            async for state in run.states():
                ends.append(time.perf_counter())
                if state.epoch == WARM_UP + 4:
                    # The learners are the processes that have been busy longest.
                    children = psutil.Process().children(recursive=True)
                    busiest = max(children, key=lambda child: child.cpu_times().user)
                    died = time.perf_counter()
                    os.kill(busiest.pid, signal.SIGKILL)
                if state.epoch == WARM_UP + 6:
                    run.stop()

    anyio.run(main)
    after = next(end for end in ends if end > died)
    return {"replaced": after - died, "epoch": statistics.median(np.diff(ends[WARM_UP : WARM_UP + 4]).tolist())}


def moved(hidden: int, environments: int, shrinks: int) -> dict[str, float]:
    """Seconds from a machine's death to the end of the first epoch with its successor, or (`shrinks`) without one."""
    import anyio
    import psutil
    from ray.cluster_utils import Cluster

    from orchestrator import Trainer

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes: list[Any] = [machines.add_node(num_cpus=2) for _ in range(2)]
    found: dict[str, float] = {}

    def kill_one() -> None:
        for node in nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            there = raylet.children(recursive=True)
            if any("orchestrator.workers.forking" in " ".join(one.cmdline()) for one in there):
                for process in (raylet, *there):
                    process.kill()

    async def main() -> None:
        config = replace(configured(2, hidden, environments), cluster=machines.address)
        config = replace(config, on_cell_lost="shrink" if shrinks else "replace")
        died = 0.0
        async with Trainer(config).start() as run:
            async for state in run.states():
                if state.epoch == WARM_UP + 4:
                    died = time.perf_counter()
                    await anyio.to_thread.run_sync(kill_one)
                if died and run.statistics().workers["learner-1"].restarts:
                    found["again"] = time.perf_counter() - died
                    run.stop()

    anyio.run(main)
    machines.shutdown()
    return found


def simulated(cells: int, minibatches: NDArray[Any], nbytes: int, latency: float, bandwidth: float) -> float:
    """Seconds of a step, on average."""
    draw = np.random.default_rng(1)
    now = np.zeros(cells)
    for _ in range(STEPS):
        now += draw.choice(minibatches, cells)
        for distance, size in messages(cells, nbytes):
            now = np.maximum(now, now[np.arange(cells) ^ distance]) + latency + size / bandwidth
    return float(now.max() / STEPS)


def messages(cells: int, nbytes: int) -> list[tuple[int, float]]:
    """Distance and bytes of what each cell sends for a step."""
    from orchestrator.learning.exchange import LARGE

    distances = [2**power for power in range(cells.bit_length() - 1)]
    if cells <= 2 or nbytes < LARGE:
        return [(distance, nbytes) for distance in distances]
    halves = [(distance, nbytes / (2 * distance)) for distance in distances]
    return [*halves, *reversed(halves)]


def show_simulation(minibatches: list[float], nbytes: int, latency: float, gigabits: float) -> None:
    times, bandwidth = np.array(minibatches), gigabits * 1e9 / 8
    print(
        f"\nsimulated: minibatches of {1e3 * times.mean():.3g} ms (median {1e3 * np.median(times):.3g}, 99 % below"
        f" {1e3 * percentile(minibatches, 0.99):.3g}), {nbytes / 1e3:.0f} kB per message, {1e6 * latency:g} us,"
        f" {gigabits:g} Gbit/s; efficiency:"
    )
    print(f"  {'cells':>6} {'all':>8} {'no latency':>11} {'no bytes':>9} {'no stragglers':>14}")
    even = np.full_like(times, times.mean())
    for cells in SIMULATED:
        kinds = [
            (times, nbytes, latency),
            (times, nbytes, 0.0),
            (times, 0, latency),
            (even, nbytes, latency),
        ]
        shares = [times.mean() / simulated(cells, of, size, delay, bandwidth) for of, size, delay in kinds]
        whole, *without = shares
        mark = "" if whole >= GOAL else "  below 0.9"
        print(f"  {cells:>6} {whole:>8.3f} {without[0]:>11.3f} {without[1]:>9.3f} {without[2]:>14.3f}{mark}")


def show_apart(
    rounds: list[list[dict[str, Any]]], together: list[dict[str, Any]], ideal: float, processor: float
) -> None:
    """Runs of one cell side by side, one list for each round, beside the same number of cells in each round."""
    sums = [sum(run["rate"] for run in runs) for runs in rounds]
    ratios = [result["rate"] / total for result, total in zip(together, sums, strict=True)]
    used = statistics.median(result["processor"] for result in together) / processor
    used_apart = statistics.median(run["processor"] for runs in rounds for run in runs) / processor
    print(
        f"           {len(rounds[0])} runs of one cell side by side: {spread(sums)} steps/s together,"
        f" {statistics.median(sums) / ideal:.3f} of {len(rounds[0])} times one; the cells have {spread(ratios)} of that"
        f"\n           processor time per step: {used:.3f} times that of one cell, side by side {used_apart:.3f}"
    )


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--environments", type=int, default=64, help="of each cell (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=256, help="width of the two hidden layers (default: %(default)s)")
    parser.add_argument("--network-latency", type=float, default=50.0, help="microseconds (default: %(default)s)")
    parser.add_argument("--gigabits", type=float, default=25.0, help="per second (default: %(default)s)")
    parser.add_argument("--machines", action="store_true", help="how soon a run trains again that has lost a machine")
    options = parser.parse_args()
    if options.one:
        what, *numbers = options.one
        functions: dict[str, Any] = {
            "measured": measured,
            "replaced": replaced,
            "moved": moved,
            "gradient": gradient_bytes,
        }
        print(json.dumps(functions[what](*map(int, numbers))))
        return
    sizes = options.hidden, options.environments
    print(describe_machine())
    if options.machines:
        for shrinks, how in enumerate(("replaced", "done without")):
            times = [
                in_subprocess(__file__, "--one", "moved", *sizes, shrinks)["again"] for _ in range(options.repeats)
            ]
            print(f"  a machine of 2 killed, and {how}: {spread(times)} s to the end of the first epoch after that")
        return
    found: dict[int, list[dict[str, Any]]] = {cells: [] for cells in sorted({1, *options.cells})}
    apart: dict[int, list[list[dict[str, Any]]]] = {cells: [] for cells in found if cells > 1}
    for _ in range(options.repeats):
        for cells, results in found.items():
            results.append(in_subprocess(__file__, "--one", "measured", cells, *sizes))
            if cells > 1:
                apart[cells].append(side_by_side(cells, *sizes))
    nbytes = in_subprocess(__file__, "--one", "gradient", *sizes)
    one = statistics.median(result["rate"] for result in found[1])
    processor = statistics.median(result["processor"] for result in found[1])
    print(f"\n{options.environments} CartPoles x {HORIZON} steps for each cell, MLP {options.hidden}-{options.hidden}")
    for cells, results in found.items():
        rates = [result["rate"] for result in results]
        middle = {
            key: statistics.median(result[key] for result in results) for key in ("epoch", "learn", "exchange", "wait")
        }
        print(
            f"  {cells} cells: {spread(rates)} steps/s, {statistics.median(rates) / (cells * one):.3f} of {cells} times"
            f" one; epoch {1e3 * middle['epoch']:.0f} ms, learning {1e3 * middle['learn']:.0f} ms, of which exchange"
            f" {1e3 * middle['exchange']:.1f} and waiting {1e3 * middle['wait']:.1f}"
        )
        if cells > 1:
            sent = results[0]["bytes"] / (cells * results[0]["steps"])
            show_apart(apart[cells], results, cells * one, processor)
            print(f"           {sent:.0f} bytes written by each per step, {sent / nbytes:.3f} of the arithmetic")
    deaths = [in_subprocess(__file__, "--one", "replaced", *sizes) for _ in range(options.repeats)]
    print(
        f"  a learner of 2 killed: {spread([death['replaced'] for death in deaths])} s to the end of the epoch, which"
        f" takes {spread([death['epoch'] for death in deaths])} s undisturbed"
    )
    samples = [seconds for result in found[1] for seconds in result["minibatches"]]
    show_simulation(samples, nbytes, 1e-6 * options.network_latency, options.gigabits)


if __name__ == "__main__":
    main()
