"""What hooks do to the training, and what the training does to the event loop.

    python scripts/bench/hooks.py [--repeats 5]

Epoch time (CartPole-v1, 64 environments) without hooks, with an async hook that sleeps 10 s for each epoch it is
given, and with one whose plain Python function burns a core all the time, in turn; the same for a learner that has
the machine to itself, with and without the burning function in its host. Then how late a task of the host is that
wants to tick every 5 ms while training runs.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))
from measure import WARM_UP, arguments, describe_machine, epoch_seconds, in_subprocess, percentile, spread, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator import Hook, TrainerConfig

ENVIRONMENTS, EPOCHS = 64, 40
SLEEP = 10.0
TICK = 0.005
SLEEPING_GOAL, BURNING_GOAL, LAG_GOAL = 1.02, 1.3, 5.0


def configured() -> TrainerConfig:
    from orchestrator import CollectionConfig, TrainerConfig

    return TrainerConfig(total_agent_steps=10**9, collection=CollectionConfig(environments=ENVIRONMENTS, horizon=128))


def burn(wanted: Callable[[], bool]) -> None:
    """Pure Python at work, which never gives the interpreter lock away by itself."""
    total = 0
    while wanted():
        for number in range(10_000):
            total += number * number


def hooks(variant: str) -> list[Hook]:
    import anyio

    from orchestrator import Hook

    class Sleeping(Hook):
        drain = False

        async def on_epoch_end(self, state: object) -> None:
            await anyio.sleep(SLEEP)

    class Burning(Hook):
        drain = False

        def on_epoch_end(self, state: object) -> None:  # plain: in a thread of the hook's own
            end = time.perf_counter() + SLEEP
            burn(lambda: time.perf_counter() < end)

    return {"none": [], "sleeping": [Sleeping()], "burning": [Burning()]}[variant]


def training(variant: str) -> float:
    """Median seconds of an epoch. The hook has begun before the first epoch that is timed."""
    return statistics.median(epoch_seconds(configured(), EPOCHS, hooks=hooks(variant)))


def learner_alone(variant: str) -> float:
    """Median seconds in which a learner process, with no collector at work, learns from one epoch."""
    import anyio

    from orchestrator.crew import EXPERIENCE, POLICY, crew
    from orchestrator.default_losses import default_losses
    from orchestrator.workers import Interrupt
    from state import TrainerState
    from state.shared_memory import SlotRing

    config = configured()
    seconds: list[float] = []
    over = threading.Event()

    async def main() -> None:
        async with crew(config, default_losses(config), Interrupt()) as workers:
            slot = SlotRing(workers.spec.nbytes, max_leased=0, name=EXPERIENCE).claim()
            policy = SlotRing(workers.description.layout.nbytes, max_leased=0, name=POLICY).claim()
            await workers.publish(policy)
            await workers.collect(slot, policy)
            if variant == "burning":
                threading.Thread(target=burn, args=[lambda: not over.is_set()], daemon=True).start()
            for epoch in range(WARM_UP + EPOCHS):
                begin = time.perf_counter()
                await workers.learn(TrainerState(epoch=epoch, agent_step=1), slot, 0, policy, epoch + 1)
                seconds.append(time.perf_counter() - begin)
            over.set()

    anyio.run(main)
    return statistics.median(seconds[WARM_UP:])


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


def main() -> None:
    chosen = arguments(__doc__, repeats=5).parse_args()
    if chosen.one:
        what, *variant = chosen.one
        print(json.dumps({"training": training, "learner alone": learner_alone, "lag": lateness}[what](*variant)))
        return
    print(describe_machine())
    contenders = [("learner alone", "none"), ("learner alone", "burning")]
    contenders += [("training", variant) for variant in ("none", "sleeping", "burning")]
    rounds = [
        {contender: in_subprocess(__file__, "--one", *contender) for contender in contenders}
        for _ in range(chosen.repeats)
    ]
    for contender in contenders:
        what, variant = contender
        goal = {"sleeping": SLEEPING_GOAL, "burning": BURNING_GOAL if what == "learner alone" else None}.get(variant)
        seconds = [one[contender] for one in rounds]
        ratios = [one[contender] / one[what, "none"] for one in rounds]
        name = f"{what}, {'no' if variant == 'none' else variant} hook"
        print(f"{name:27}  {spread([one * 1e3 for one in seconds])} ms per epoch", end="")
        if variant != "none":
            print(f"  {spread(ratios)} x", end="")
        print(f"  ({verdict(statistics.median(ratios), goal)})" if goal else "")
    lags = [in_subprocess(__file__, "--one", "lag") for _ in range(chosen.repeats)]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        values = [percentile(one, share) for one in lags]
        print(f"a tick every {TICK * 1e3:g} ms is late by {name}  {spread(values)} ms", end="")
        print(f"  ({verdict(statistics.median(values), LAG_GOAL)})" if name == "p99" else "")


if __name__ == "__main__":
    main()
