"""Agent steps per second of a collector alone, by who steps its environments: a Python environment whose step takes
1 ms (asleep, or computing), one whose step takes nothing (what a round trip to the workers costs), and MettaGrid's
arena beside its simulators alone. All on the same cores, in turn; nothing is learned meanwhile.

    python scripts/bench/environment_workers.py [--repeats 3] [--environments 8] [--only sleep spin nothing arena]

The arena needs the `mettagrid` extra; without it, it is left out.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import arguments, describe_machine, in_subprocess, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

SECONDS, HORIZON = 1e-3, 32
SPLITS = [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2)]
"""Environment workers and groups."""
KINDS = ("sleep", "spin", "nothing", "arena")


class Slow(gymnasium.Env[Any, Any]):
    """Its steps take a millisecond: of waiting, or of a core; or nothing."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, how: str) -> None:
        self._how = how
        self._observation = np.zeros(4, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._how == "sleep":
            time.sleep(SECONDS)
        elif self._how == "spin":
            end = time.thread_time() + SECONDS
            while time.thread_time() < end:
                pass
        return self._observation, 0.0, False, False, {}


def slow(how: str) -> gymnasium.Env[Any, Any]:
    return Slow(how)


@contextmanager
def collecting(
    kind: str, workers: int, groups: int, environments: int
) -> Generator[tuple[Callable[[], object], int], None, None]:
    """A function that collects one rollout, and the rollout's agent steps."""
    import torch

    from orchestrator import CollectionConfig, PolicyConfig, TrainerConfig, read_preset
    from orchestrator.collection.collector import Collector
    from orchestrator.collection.experience_fields import experience_fields
    from orchestrator.collection.plan import CollectorPlan
    from state.experience import ExperienceSpec

    torch.set_num_threads(1)
    arena = kind == "arena"
    collection = CollectionConfig(
        num_environments=environments,
        horizon=HORIZON,
        environment_workers=workers,
        environment_groups=groups,
        environment_options={"max_steps": 10_000} if arena else {"how": kind},
    )
    config = TrainerConfig(
        environment="mettagrid/arena" if arena else "environment_workers:slow",
        collection=collection,
        policy=read_preset("mettagrid").policy if arena else PolicyConfig(),
        staleness=0,
    )
    collector = Collector(CollectorPlan(config=config))
    try:
        rows = environments * len(collector.agents())
        spec = ExperienceSpec(rows, HORIZON, tuple(experience_fields(collector.spaces())))
        collector.prepare(spec)
        memory = spec.arrays(bytearray(spec.nbytes))
        yield lambda: collector.collect(memory, lambda policy: None, lambda: False), rows * HORIZON
    finally:
        collector.close()


def collected(kind: str, workers: int, groups: int, environments: int, seconds: float) -> float:
    """Agent steps per second of a collector's rollouts: the median of those of about so many seconds."""
    with collecting(kind, workers, groups, environments) as (collect, steps):
        rates: list[float] = []
        end = time.perf_counter() + seconds
        while len(rates) < 4 or time.perf_counter() < end:
            began = time.perf_counter()
            collect()
            rates.append(steps / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--environments", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    chosen = parser.parse_args()
    if chosen.one:
        kind, split = chosen.one[0].split(":")
        if split == "alone":
            from mettagrid_speed import simulators

            print(json.dumps(simulators(chosen.environments, 300)))
            return
        workers, groups = map(int, split.split("x"))
        print(json.dumps(collected(kind, workers, groups, chosen.environments, chosen.seconds)))
        return
    print(describe_machine())
    for kind in chosen.only:
        if kind == "arena" and find_spec("mettagrid") is None:
            print("arena: left out, mettagrid is not installed")
            continue
        splits = [f"{workers}x{groups}" for workers, groups in SPLITS] + (["alone"] if kind == "arena" else [])
        rates: dict[str, list[float]] = {split: [] for split in splits}
        for _ in range(chosen.repeats):
            for split, measured in rates.items():
                options = ("--environments", chosen.environments, "--seconds", chosen.seconds)
                measured.append(in_subprocess(__file__, *options, "--one", f"{kind}:{split}"))
        base = "alone" if kind == "arena" else "1x1"
        print(f"\n{kind}, {chosen.environments} environments (workers x groups; relative to {base})")
        for split, measured in rates.items():
            ratio = statistics.median(one / other for one, other in zip(measured, rates[base], strict=True))
            print(f"  {split:6} {spread(measured)} steps/s  {ratio:6.2f} x")


if __name__ == "__main__":
    main()
