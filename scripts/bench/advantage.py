"""The share of the training phase that goes into advantages (GAE), at horizon 128.

    python scripts/bench/advantage.py [--environments 8 64 512] [--repeats 20]

Measured in the learner itself, in a thread of this process, on experience that it was just given by a collector.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import WARM_UP, arguments, describe_machine, in_subprocess, spread, verdict

GOAL = 2.0


def measure(environments: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each learning phase, and of the advantages in it."""
    import anyio

    from orchestrator import CollectionConfig, TrainerConfig
    from orchestrator.learning import batch
    from orchestrator.learning.default_losses import default_losses
    from orchestrator.loop.patience import Patience
    from orchestrator.loop.worker_group import EXPERIENCE, POLICY, worker_group
    from orchestrator.workers.interrupt import Interrupt
    from state import TrainerState
    from state.policy_point import PolicyPoint
    from state.shared_memory import SlotRing

    config = TrainerConfig(
        total_agent_steps=10**9,
        collection=CollectionConfig(num_environments=environments, horizon=128, backend="inline"),
    )
    phases: list[float] = []
    advantages: list[float] = []
    gae = batch.gae

    def timed_gae(*args: Any) -> Any:
        begin = time.perf_counter()
        result = gae(*args)
        advantages.append(time.perf_counter() - begin)
        return result

    async def main() -> None:
        async with worker_group(config, default_losses(config), Interrupt(), Patience()) as workers:
            slot = SlotRing(workers.spec.nbytes, max_leased=0, name=EXPERIENCE).claim()
            policy = SlotRing(workers.description.layout.nbytes, max_leased=0, name=POLICY).claim()
            await workers.publish(policy)
            await workers.collect(slot, policy)
            for epoch in range(WARM_UP + repeats):
                state = TrainerState(epoch=epoch, agent_step=1)
                report = await workers.learn(state, slot, PolicyPoint(0), policy, epoch + 1)
                phases.append(report.ended - report.began)

    batch.gae = timed_gae
    anyio.run(main)
    return {"phase": phases[WARM_UP:], "advantages": advantages[WARM_UP:]}


def main() -> None:
    chosen = arguments(__doc__, repeats=20, environments=(8, 64, 512)).parse_args()
    if chosen.one:
        print(json.dumps(measure(*map(int, chosen.one))))
        return
    print(describe_machine())
    for environments in chosen.environments:
        measured = in_subprocess(__file__, "--one", environments, chosen.repeats)
        shares = [100 * part / whole for part, whole in zip(measured["advantages"], measured["phase"], strict=True)]
        print(
            f"{environments:4} environments  {spread([one * 1e3 for one in measured['advantages']])} ms of"
            f" {spread([one * 1e3 for one in measured['phase']])} ms: {spread(shares)} %"
            f"  ({verdict(statistics.median(shares), GOAL)})",
            flush=True,
        )


if __name__ == "__main__":
    main()
