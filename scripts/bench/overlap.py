"""Epoch time where collecting and learning overlap (staleness 1), against the longer of the two measured alone.

    python scripts/bench/overlap.py [--environments 64 512] [--repeats 5]

Alone: the same workers with the same threads take turns, so that each has the machine to itself, and the policy gets
better in the same way (an untrained one ends more episodes, which takes time). Both sides in turn, in processes of
their own. The ratio is 1 if overlapping costs nothing.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))
from measure import WARM_UP, arguments, describe_machine, epoch_seconds, in_subprocess, spread, verdict

if TYPE_CHECKING:
    from orchestrator import TrainerConfig

GOAL = 1.15


def configured(environments: int) -> TrainerConfig:
    from orchestrator import CollectionConfig, TrainerConfig

    return TrainerConfig(
        total_agent_steps=10**9, staleness=1, collection=CollectionConfig(num_environments=environments, horizon=128)
    )


def epochs_for(environments: int) -> int:
    """Epochs to measure: a few seconds' worth."""
    return 40 if environments < 256 else 10


def overlapped(environments: int) -> dict[str, float]:
    return {"epoch": statistics.median(epoch_seconds(configured(environments), epochs_for(environments)))}


def alone(environments: int) -> dict[str, float]:
    """Median seconds of collecting one epoch while the learner is idle, and of learning while the collector is."""
    import anyio

    from orchestrator.learning.default_losses import default_losses
    from orchestrator.loop.patience import Patience
    from orchestrator.loop.worker_group import EXPERIENCE, POLICY, worker_group
    from orchestrator.workers.interrupt import Interrupt
    from state import TrainerState
    from state.policy_point import PolicyPoint
    from state.shared_memory import SlotRing

    config = configured(environments)
    collecting: list[float] = []
    learning: list[float] = []

    async def main() -> None:
        async with worker_group(config, default_losses(config), Interrupt(), Patience()) as workers:
            experience = SlotRing(workers.spec.nbytes, max_leased=0, name=EXPERIENCE)
            policies = SlotRing(workers.description.layout.nbytes, max_leased=0, name=POLICY)
            slot, policy = experience.claim(), policies.claim()
            await workers.publish(policy)
            for epoch in range(WARM_UP + epochs_for(environments)):
                begin = time.perf_counter()
                await workers.collect(slot, policy)
                middle = time.perf_counter()
                state = TrainerState(epoch=epoch, agent_step=config.steps_per_epoch * (epoch + 1))
                publish_to = policies.claim()
                await workers.learn(state, slot, PolicyPoint(epoch), publish_to, epoch + 1)
                end = time.perf_counter()
                policies.release(policy)
                policy = publish_to
                collecting.append(middle - begin)
                learning.append(end - middle)

    anyio.run(main)
    return {"collect": statistics.median(collecting[WARM_UP:]), "learn": statistics.median(learning[WARM_UP:])}


def main() -> None:
    chosen = arguments(__doc__, repeats=5, environments=(64, 512)).parse_args()
    if chosen.one:
        measured = {"overlapped": overlapped, "alone": alone}[chosen.one[0]](int(chosen.one[1]))
        print(json.dumps(measured))
        return
    print(describe_machine())
    print("CartPole-v1, horizon 128, otherwise the defaults; milliseconds per epoch")
    for environments in chosen.environments:
        rounds = [
            in_subprocess(__file__, "--one", "alone", environments)
            | in_subprocess(__file__, "--one", "overlapped", environments)
            for _ in range(chosen.repeats)
        ]
        for name in ("collect", "learn", "epoch"):
            what = "overlapped epoch" if name == "epoch" else f"{name} alone"
            print(f"{environments:4} environments  {what:18}  {spread([one[name] * 1e3 for one in rounds])} ms")
        ratios = [one["epoch"] / max(one["collect"], one["learn"]) for one in rounds]
        print(
            f"{environments:4} environments  epoch / max(collect, learn)  {spread(ratios)}"
            f"  ({verdict(statistics.median(ratios), GOAL)})",
            flush=True,
        )


if __name__ == "__main__":
    main()
