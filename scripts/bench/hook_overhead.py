"""What delivering events costs: 100 hooks that override every callback, and do nothing in it.

    python scripts/bench/hook_overhead.py [--repeats 7] [--hooks 1 10 25 100] [--epochs 100]

First the processor time that the event loop's thread spends per epoch (four events) on publishing and handling, in two
rhythms: "apart", where hooks run after each event, and "as trained", where the last two events of an epoch and the
first of the next come together, as in the training loop. Then what the training notices of it: epochs of a real one
of about 50 ms, with and without the hooks, in turn; with staleness 0, where one of two cores is free, and with 1, where
the hooks take their processor time from collecting and learning. One JSON object per line.
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
from measure import describe_machine, epoch_seconds, spread, verdict

from orchestrator import CollectionConfig, TrainerConfig
from orchestrator.hooks.engine import HookEngine
from orchestrator.hooks.hook import EPOCH_EVENTS, Hook
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCH_SECONDS = 0.05
ENVIRONMENTS = {0: 32, 1: 64}
"""By staleness: they make epochs of about that time, on two cores."""
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


def training_epochs(hooks: int, staleness: int, epochs: int) -> list[float]:
    """Seconds of epochs of a real training; the same seed, and so the same work, whatever the hooks."""
    config = TrainerConfig(
        total_agent_steps=10**9, staleness=staleness, collection=CollectionConfig(environments=ENVIRONMENTS[staleness])
    )
    return epoch_seconds(config, epochs, hooks=idle_hooks(hooks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--hooks", type=int, nargs="+", default=[1, 10, 25, 100])
    parser.add_argument("--epochs", type=int, default=100, help="epochs of each training")
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

    hooks = max(options.hooks)
    for staleness, cores in ((0, "one free"), (1, "both busy")):
        pairs = [[training_epochs(count, staleness, options.epochs) for count in (0, hooks)] for _ in range(5)]
        without, with_hooks = ([statistics.median(pair[side]) for pair in pairs] for side in (0, 1))
        shares = [one / other - 1 for one, other in zip(with_hooks, without, strict=True)]
        record = {
            "what": "epochs of a training with and without hooks",
            "staleness": staleness,
            "cores": cores,
            "hooks": hooks,
            "without_ms": spread([1e3 * value for value in without]),
            "with_ms": spread([1e3 * value for value in with_hooks]),
            "share": spread(shares),
            "verdict": verdict(statistics.median(shares), GOAL),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
