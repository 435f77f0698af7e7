"""What delivering events costs: 100 hooks that override every callback, and do nothing in it.

    python scripts/bench/hook_overhead.py [--repeats 7] [--hooks 1 10 25 100] [--epochs 150]

First the processor time that the event loop's thread spends per epoch (four events) on publishing and handling, in two
rhythms: "apart", where hooks run after each event, and "as trained", where the last two events of an epoch and the
first of the next come together, as in the training loop. Then what the training notices of it: the time of epochs in
which a worker process computes twice for about 25 ms, with and without the hooks, in turn within one process, so that
load from elsewhere hits both alike. One JSON object per line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

sys.path.insert(0, str(Path(__file__).parent))
from measure import describe_machine, percentile, verdict

from orchestrator.hooks.engine import HookEngine
from orchestrator.hooks.hook import EPOCH_EVENTS, Hook
from orchestrator.workers import start_worker
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCH_SECONDS = 0.05
GOAL = 0.01
RHYTHMS = {
    "apart": [(event,) for event in EPOCH_EVENTS],
    "as trained": [("on_rollout_end",), ("on_train_phase_end", "on_epoch_end", "on_rollout_start")],
}


class Idle(Hook):
    """Overrides all callbacks; `handled` counts over all hooks."""

    handled = 0

    def __init__(self, name: str) -> None:
        self.name = name

    async def on_new_training_run(self, state: TrainerState) -> None: ...

    async def on_rollout_start(self, state: TrainerState) -> None:
        Idle.handled += 1

    async def on_rollout_end(self, state: TrainerState) -> None:
        Idle.handled += 1

    async def on_train_phase_end(self, state: TrainerState) -> None:
        Idle.handled += 1

    async def on_epoch_end(self, state: TrainerState) -> None:
        Idle.handled += 1

    async def on_checkpoint_committed(self, state: TrainerState) -> None: ...

    async def on_training_end(self, state: TrainerState) -> None: ...

    async def on_failure(self, state: TrainerState) -> None: ...


class NoRun:
    run_id = "benchmark"
    run_dir = None

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the benchmark's hooks ask for nothing, yet {name} was called")


def idle_hooks(count: int) -> list[Hook]:
    return [Idle(f"hook{place}") for place in range(count)]


async def event_loop_seconds(hooks: int, rhythm: Sequence[Sequence[str]], epochs: int = 100) -> float:
    """Median processor time of this thread per epoch."""
    engine = HookEngine(idle_hooks(hooks), NoRun())  # type: ignore[arg-type]
    seconds: list[float] = []
    async with engine.running():
        await anyio.lowlevel.checkpoint()
        for epoch in range(epochs):
            state = TrainerState(epoch=epoch)
            begin = time.thread_time()
            for events in rhythm:
                expected = Idle.handled + hooks * len(events)
                for event in events:
                    await engine.publish(event, state)
                while Idle.handled < expected:
                    await anyio.lowlevel.checkpoint()
            seconds.append(time.thread_time() - begin)
    return statistics.median(seconds)


class Computer:
    """A worker that computes for about the given time, always the same amount."""

    def __init__(self, seconds: float) -> None:
        self._rounds = 0
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds * 4:
            self._round()
            self._rounds += 1
        self._rounds //= 4

    def compute(self) -> float:
        begin = time.thread_time()
        for _ in range(self._rounds):
            self._round()
        return time.thread_time() - begin

    def _round(self) -> int:
        return sum(range(10_000))


async def epoch_seconds(hooks: int, epochs: int) -> dict[str, list[float]]:
    """Durations of epochs with and without hooks, which alternate."""
    engines = {
        "without": HookEngine([], NoRun()),  # type: ignore[arg-type]
        "with": HookEngine(idle_hooks(hooks), NoRun()),  # type: ignore[arg-type]
    }
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    async with start_worker("process", "computer", Computer, EPOCH_SECONDS / 2) as worker, engines["with"].running():
        for epoch in range(2 * epochs):
            name, engine = list(engines.items())[epoch % 2]
            state = TrainerState(epoch=epoch)
            begin = time.perf_counter()
            expected = Idle.handled + (len(EPOCH_EVENTS) * hooks if name == "with" else 0)
            await engine.publish("on_rollout_start", state)
            await worker.call("compute")
            await engine.publish("on_rollout_end", state)
            await worker.call("compute")
            await engine.publish("on_train_phase_end", state)
            await engine.publish("on_epoch_end", state)
            while Idle.handled < expected:  # in a training this would overlap with the next epoch; here it counts
                await anyio.lowlevel.checkpoint()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--hooks", type=int, nargs="+", default=[1, 10, 25, 100])
    parser.add_argument("--epochs", type=int, default=150, help="epochs with and epochs without hooks")
    options = parser.parse_args()
    print(f"# {describe_machine()}", flush=True)

    cases = [(b, r, h) for b in ("asyncio", "trio") for r in RHYTHMS for h in options.hooks]
    measured: dict[tuple[str, str, int], list[float]] = {case: [] for case in cases}
    for _ in range(options.repeats):
        for backend, rhythm, hooks in cases:
            seconds = anyio.run(event_loop_seconds, hooks, RHYTHMS[rhythm], backend=backend)
            measured[backend, rhythm, hooks].append(seconds)
    for (backend, rhythm, hooks), values in measured.items():
        median = statistics.median(values)
        record = {
            "what": "event-loop time per epoch",
            "backend": backend,
            "rhythm": rhythm,
            "hooks": hooks,
            "ms_median": round(1e3 * median, 3),
            "ms_min": round(1e3 * min(values), 3),
            "ms_max": round(1e3 * max(values), 3),
            "us_per_delivery": round(1e6 * median / (4 * hooks), 2),
            "share_of_50_ms": round(median / EPOCH_SECONDS, 4),
            "verdict": verdict(median / EPOCH_SECONDS, GOAL),
        }
        print(json.dumps(record), flush=True)

    for backend in ("asyncio", "trio"):
        seconds = anyio.run(epoch_seconds, max(options.hooks), options.epochs, backend=backend)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        differences = [one - other for one, other in zip(seconds["with"], seconds["without"], strict=True)]
        cost = statistics.median(differences)
        record = {
            "what": "epoch time with and without hooks",
            "backend": backend,
            "hooks": max(options.hooks),
            "epochs": options.epochs,
            "without_ms_median": round(1e3 * medians["without"], 3),
            "with_ms_median": round(1e3 * medians["with"], 3),
            "difference_ms_median": round(1e3 * cost, 3),
            "difference_ms_quartiles": [round(1e3 * percentile(differences, share), 3) for share in (0.25, 0.75)],
            "undisturbed_ms": {name: round(1e3 * percentile(values, 0.1), 3) for name, values in seconds.items()},
            "share": round(cost / medians["without"], 4),
            "verdict": verdict(cost / medians["without"], GOAL),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
