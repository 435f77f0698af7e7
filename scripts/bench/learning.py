"""Whether the documented settings learn, and how fast: agent steps and seconds of training until the mean return of
the last 100 episodes reaches a threshold, and that mean at the end of the run.

    python scripts/bench/learning.py [--tasks cartpole memory ...] [--seeds 1 2 3] [--staleness 0 1] [--to-threshold]

CartPole-v1 runs with the defaults, the others with the files in scripts/settings; lunar_lander needs the `box2d` extra
and half_cheetah the `mujoco` extra. The memory task is tried with an MLP too, which cannot solve it: whatever it does,
its mean return is 0 in the long run.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import describe_machine, in_subprocess, spread

SETTINGS = Path(__file__).parent.parent / "settings"
MIN_EPISODES = 100


@dataclass(frozen=True, slots=True)
class Task:
    """What to train, and when it counts as learned."""

    threshold: float
    """Of the mean return of the last 100 episodes."""
    settings: str | None
    """File in scripts/settings, without its ending (None: the defaults)."""
    network: str | None = None
    """Instead of the file's (None: the file's)."""


TASKS = {
    "cartpole": Task(475.0, None),
    "acrobot": Task(-100.0, "acrobot"),
    "lunar_lander": Task(200.0, "lunar_lander"),
    "half_cheetah": Task(1000.0, "half_cheetah"),
    "memory": Task(0.9, "memory"),
    "memory_mlp": Task(0.9, "memory", network="mlp"),
}


def train(task: Task, seed: int, staleness: int | None, to_threshold: bool) -> dict[str, float | None]:
    """Train once; `steps` and `seconds` (of training, the start of the workers left out) are None if not learned."""
    import anyio

    from orchestrator import Trainer, TrainerConfig
    from orchestrator.config.file import read_config

    config = TrainerConfig() if task.settings is None else read_config(SETTINGS / f"{task.settings}.toml")
    config = replace(config, seed=seed, run_dir=None)
    if staleness is not None:
        config = replace(config, staleness=staleness)
    if task.network is not None:
        config = replace(config, policy=replace(config.policy, network=task.network))
    result: dict[str, float | None] = {"steps": None, "seconds": None, "final": None, "total_seconds": None}

    async def main() -> None:
        async with Trainer(config).start() as run:
            async for state in run.states():
                tracker, timer = state.stats_tracker, state.timer
                assert tracker is not None
                assert timer is not None
                mean = tracker.recent_mean("episode_return")
                result["final"], result["total_seconds"] = mean, timer.seconds
                if result["steps"] is not None or mean is None or tracker.episodes < MIN_EPISODES:
                    continue
                if mean >= task.threshold:
                    result["steps"], result["seconds"] = state.agent_step, timer.seconds
                    if to_threshold:
                        run.stop("learned")

    anyio.run(main)
    return result


def report(name: str, results: list[dict[str, Any]]) -> None:
    """One line: how many seeds have learned, and the medians of those."""
    learned = [result for result in results if result["steps"] is not None]
    parts = [f"{name:24}  {len(learned)} of {len(results)} seeds"]
    if learned:
        parts.append(f"{spread([result['steps'] for result in learned])} agent steps")
        parts.append(f"{spread([result['seconds'] for result in learned])} s")
    finals = [result["final"] for result in results if result["final"] is not None]
    if finals:
        parts.append(f"at the end {spread(finals)}")
    print("  ".join(parts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=" ".join(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--staleness", type=int, nargs="+", help="compare these, instead of what the settings say")
    parser.add_argument("--to-threshold", action="store_true", help="end each run when it has learned")
    parser.add_argument("--one", nargs=3, metavar=("TASK", "SEED", "STALENESS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, seed, given = arguments.one
        staleness = None if given == "own" else int(given)
        print(json.dumps(train(TASKS[name], int(seed), staleness, arguments.to_threshold)))
        return
    print(describe_machine())
    for name in arguments.tasks:
        print(f"{name}: mean return of the last {MIN_EPISODES} episodes >= {TASKS[name].threshold:g}")
        variants = ["own"] if arguments.staleness is None else arguments.staleness
        results: dict[object, list[dict[str, Any]]] = {variant: [] for variant in variants}
        flags = ["--to-threshold"] if arguments.to_threshold else []
        for seed in arguments.seeds:
            for variant in variants:
                result = in_subprocess(__file__, "--one", name, seed, variant, *flags)
                results[variant].append(result)
                label = "" if variant == "own" else f", staleness {variant}"
                values = "  ".join(f"{key} {_shown(value)}" for key, value in result.items())
                print(f"  seed {seed}{label}:  {values}", flush=True)
        for variant, of_variant in results.items():
            report(name if variant == "own" else f"{name}, staleness {variant}", of_variant)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


if __name__ == "__main__":
    main()
