"""Seconds of training until CartPole-v1 is solved with the defaults: a mean return of at least 475 over the last 100
training episodes.

    python scripts/bench/cartpole.py [--seeds 1 2 3 4 5]

Each seed in a process of its own. Training time begins with the first epoch, when the workers are there.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import arguments, describe_machine, in_subprocess, spread, verdict

SOLVED, EPISODES = 475.0, 100
MEDIAN_GOAL, GREATEST_GOAL = 6.0, 12.0
GIVEN_UP = 2_000_000
"""Agent steps after which a run counts as failed."""


def solve(seed: int) -> dict[str, float | None]:
    """Seconds and agent steps until it was solved; None where it was not."""
    import anyio

    from orchestrator import Trainer, TrainerConfig

    solved: dict[str, float | None] = {"seconds": None, "agent_steps": None}

    async def main() -> None:
        async with Trainer(TrainerConfig(seed=seed, total_agent_steps=GIVEN_UP)).start() as run:
            async for state in run.states():
                tracker, timer = state.stats_tracker, state.timer
                if tracker is None or timer is None or tracker.episodes < EPISODES:
                    continue
                if (tracker.recent_mean("episode_return") or 0.0) >= SOLVED:
                    solved.update(seconds=timer.seconds, agent_steps=state.agent_step)
                    run.stop()
                    break

    anyio.run(main)
    return solved


def main() -> None:
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(solve(int(chosen.one[0]))))
        return
    print(describe_machine())
    seconds: list[float] = []
    for seed in chosen.seeds * chosen.repeats:
        solved = in_subprocess(__file__, "--one", seed)
        if solved["seconds"] is None:
            print(f"seed {seed:3}  not solved in {GIVEN_UP:,} agent steps", flush=True)
            seconds.append(float("inf"))
            continue
        seconds.append(solved["seconds"])
        print(f"seed {seed:3}  {solved['seconds']:6.2f} s  {solved['agent_steps']:9,} agent steps", flush=True)
    print(f"median   {spread(seconds)} s  ({verdict(statistics.median(seconds), MEDIAN_GOAL)})")
    print(f"greatest {max(seconds):.4g} s  ({verdict(max(seconds), GREATEST_GOAL)})")


if __name__ == "__main__":
    main()
