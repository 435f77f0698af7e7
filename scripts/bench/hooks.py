"""What hooks do to the training, and what the training does to the event loop.

    python scripts/bench/hooks.py [--repeats 3] [--pairs 6]

Epoch time (CartPole-v1, 64 environments) beside an async hook that sleeps 10 s for each epoch it is given, and beside
one whose plain Python function burns a core all the time. Machines drift more within a minute than what is measured,
so the hook is at work in every other block of epochs of one training, and a block is timed once a sleep of the one
before must have ended. The same for a learner that has the machine to itself, with and without the burning function in
its host. Then how late a task of the host is that wants to tick every 5 ms while training runs.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import (
    WARM_UP,
    arguments,
    describe_machine,
    epoch_seconds,
    in_subprocess,
    percentile,
    spread,
    standard_error,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator import TrainerConfig

ENVIRONMENTS, EPOCHS, BLOCKS = 64, 40, 4
SLEEP = 10.0
SETTLE, BLOCK_SECONDS = SLEEP + 0.5, 10.0
TICK = 0.005
SLEEPING_GOAL, BURNING_GOAL, LAG_GOAL = 1.02, 1.3, 5.0


def configured() -> TrainerConfig:
    from orchestrator import CollectionConfig, TrainerConfig

    return TrainerConfig(
        total_agent_steps=10**9, collection=CollectionConfig(num_environments=ENVIRONMENTS, horizon=128)
    )


def burn(wanted: Callable[[], bool]) -> None:
    """Pure Python at work, which never gives the interpreter lock away by itself."""
    total = 0
    while wanted():
        for number in range(10_000):
            total += number * number


def training(variant: str, pairs: str) -> dict[str, list[float]]:
    """Median seconds of an epoch for each block, without the hook and beside it."""
    import anyio

    from orchestrator import Hook, Trainer

    blocks: dict[str, list[float]] = {"none": [], variant: []}
    at_work = False

    class Sleeping(Hook):
        drain = False

        async def on_epoch_end(self, state: object) -> None:
            if at_work:
                await anyio.sleep(SLEEP)

    class Burning(Hook):
        drain = False

        def on_epoch_end(self, state: object) -> Any:  # plain: in a thread of the hook's own
            end = time.perf_counter() + SLEEP
            burn(lambda: at_work and time.perf_counter() < end)

    async def main() -> None:
        nonlocal at_work
        async with Trainer(configured(), hooks=[{"sleeping": Sleeping, "burning": Burning}[variant]()]).start() as run:
            run.limit_drain(0.1)
            states = run.states()
            await anext(states)
            for block in range(2 * int(pairs)):
                at_work = block % 2 == 1
                begin = before = time.perf_counter()
                seconds: list[float] = []
                while before < begin + SETTLE + BLOCK_SECONDS:
                    await anext(states)
                    now = time.perf_counter()
                    if before > begin + SETTLE:
                        seconds.append(now - before)
                    before = now
                blocks[variant if at_work else "none"].append(statistics.median(seconds))
            run.stop()

    anyio.run(main)
    return blocks


def learner_alone() -> dict[str, float]:
    """Median seconds in which a learner process, with no collector at work, learns from one epoch, without and with
    the burning function in a thread of its host, in turn."""
    import anyio

    from orchestrator.learning.default_losses import default_losses
    from orchestrator.loop.patience import Patience
    from orchestrator.loop.worker_group import EXPERIENCE, POLICY, worker_group
    from orchestrator.workers.interrupt import Interrupt
    from state import TrainerState
    from state.policy_point import PolicyPoint
    from state.shared_memory import SlotRing

    config = configured()
    seconds: dict[str, list[float]] = {"none": [], "burning": []}

    async def main() -> None:
        async with worker_group(config, default_losses(config), Interrupt(), Patience()) as workers:
            slot = SlotRing(workers.spec.nbytes, max_leased=0, name=EXPERIENCE).claim()
            policy = SlotRing(workers.description.layout.nbytes, max_leased=0, name=POLICY).claim()
            await workers.publish(policy)
            await workers.collect(slot, policy)
            for block in range(BLOCKS):
                variant = "burning" if block % 2 else "none"
                over = threading.Event()
                if variant == "burning":
                    threading.Thread(target=burn, args=[lambda over=over: not over.is_set()], daemon=True).start()
                for epoch in range(WARM_UP + EPOCHS // BLOCKS):
                    begin = time.perf_counter()
                    state = TrainerState(epoch=epoch, agent_step=1)
                    await workers.learn(state, slot, PolicyPoint(0), policy, epoch + 1)
                    if epoch >= WARM_UP:
                        seconds[variant].append(time.perf_counter() - begin)
                over.set()

    anyio.run(main)
    return {variant: statistics.median(values) for variant, values in seconds.items()}


def lateness() -> list[float]:
    """Milliseconds by which each tick was late."""
    import anyio

    late: list[float] = []

    async def tick() -> None:
        while True:
            wanted = time.perf_counter() + TICK
            await anyio.sleep(TICK)
            late.append((time.perf_counter() - wanted) * 1e3)

    epoch_seconds(configured(), EPOCHS, beside=tick)
    # The first second belongs to the start of the workers.
    return late[int(1.0 / TICK) :]


def report(what: str, seconds: dict[str, list[float]], goal: float | None = None) -> None:
    """Print a line for each variant."""
    for variant, values in seconds.items():
        line = f"{what}, {'no' if variant == 'none' else variant} hook"
        line = f"{line:28}  {spread([one * 1e3 for one in values])} ms per epoch"
        if variant != "none":
            ratios = [one / without for one, without in zip(values, seconds["none"], strict=True)]
            line += f"  {spread(ratios)} x, standard error {standard_error(ratios):.3f}"
            if goal is not None:
                line += f"  ({verdict(statistics.median(ratios), goal)})"
        print(line, flush=True)


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--pairs", type=int, default=6, help="blocks with and without each hook (default: %(default)s)")
    chosen = parser.parse_args()
    if chosen.one:
        what, *variant = chosen.one
        print(json.dumps({"training": training, "learner": learner_alone, "lag": lateness}[what](*variant)))
        return
    print(describe_machine())
    learners = [in_subprocess(__file__, "--one", "learner") for _ in range(chosen.repeats)]
    report("learner alone", {variant: [one[variant] for one in learners] for variant in learners[0]}, BURNING_GOAL)
    report("training", in_subprocess(__file__, "--one", "training", "sleeping", chosen.pairs), SLEEPING_GOAL)
    report("training", in_subprocess(__file__, "--one", "training", "burning", chosen.pairs))
    lags = [in_subprocess(__file__, "--one", "lag") for _ in range(chosen.repeats)]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        values = [percentile(one, share) for one in lags]
        print(f"a tick every {TICK * 1e3:g} ms is late by {name}  {spread(values)} ms", end="")
        print(f"  ({verdict(statistics.median(values), LAG_GOAL)})" if name == "p99" else "")


if __name__ == "__main__":
    main()
