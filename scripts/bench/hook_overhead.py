"""What delivering events costs: 100 hooks that override every callback, and do nothing in it.

    python scripts/bench/hook_overhead.py [--repeats 7] [--hooks 1 10 25 100] [--epochs 1600]

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
from measure import describe_machine, epoch_seconds, standard_error, verdict

from orchestrator import CollectionConfig, TrainerConfig
from orchestrator.hooks.engine import HookEngine
from orchestrator.hooks.hook import EPOCH_EVENTS, Hook
from orchestrator.hooks.mailbox import Pace
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCH_SECONDS = 0.05
ENVIRONMENTS = {0: 16, 1: 32}
"""By staleness: they make epochs of about that time, on two cores."""
BLOCK = 10
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


def training_shares(hooks: int, staleness: int, epochs: int) -> list[float]:
    """What the hooks add to the time of an epoch, as shares, for pairs of blocks: in every other block of epochs of one
    real training they get all events, in the others none."""
    # Only hooks with a pace are asked whether an event is due.
    Pace.due = lambda self, event, state: (state.epoch // BLOCK) % 2 == 0  # type: ignore[method-assign]
    listening = idle_hooks(hooks)
    for hook in listening:
        hook.every = 2
    config = TrainerConfig(
        total_agent_steps=10**9,
        staleness=staleness,
        collection=CollectionConfig(num_environments=ENVIRONMENTS[staleness]),
    )
    seconds = epoch_seconds(config, epochs, warm_up=2 * BLOCK, hooks=listening)
    # The first epochs of a block may still have to do with the block before.
    blocks = [statistics.median(seconds[start + 2 : start + BLOCK]) for start in range(0, len(seconds), BLOCK)]
    return [heard / unheard - 1 for heard, unheard in zip(blocks[::2], blocks[1::2], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--hooks", type=int, nargs="+", default=[1, 10, 25, 100])
    parser.add_argument("--epochs", type=int, default=1600, help="epochs of each training")
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
        shares = training_shares(hooks, staleness, options.epochs)
        record = {
            "what": "epochs of a training with and without hooks",
            "staleness": staleness,
            "cores": cores,
            "hooks": hooks,
            "pairs_of_blocks": len(shares),
            "share_median": round(statistics.median(shares), 4),
            "standard_error": round(standard_error(shares), 4),
            "verdict": verdict(statistics.median(shares), GOAL),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
