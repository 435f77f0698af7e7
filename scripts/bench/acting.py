"""What a trained policy takes to load and to act: CartPole-v1, MLP 64-64, one observation per call.

    python scripts/bench/acting.py [--repeats 5]

Each repetition is a process of its own: seconds from the end of the imports of torch and numpy until the policy is
there, and microseconds of a call, the median of 100 times 100 calls.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import arguments, describe_machine, in_subprocess, spread


def train(folder: str) -> None:
    import anyio

    from orchestrator import Trainer, TrainerConfig

    anyio.run(Trainer(TrainerConfig(total_agent_steps=10_000, run_dir=Path(folder))).run)


def act(folder: str) -> dict[str, float]:
    import numpy as np
    import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]  # of which the time is not ours

    began = time.perf_counter()
    from orchestrator import load_policy

    policy = load_policy(folder)
    loaded = time.perf_counter() - began
    observation = np.zeros(4, np.float32)
    seconds: list[float] = []
    for _ in range(100):
        began = time.perf_counter()
        for _ in range(100):
            policy.act(observation)
        seconds.append((time.perf_counter() - began) / 100)
    return {"load": loaded, "act": statistics.median(seconds)}


def main() -> None:
    chosen = arguments(__doc__, repeats=5).parse_args()
    if chosen.one:
        what, folder = chosen.one
        print(json.dumps(train(folder) if what == "train" else act(folder)))
        return
    print(describe_machine())
    with tempfile.TemporaryDirectory() as parent:
        folder = f"{parent}/run"
        in_subprocess(__file__, "--one", "train", folder)
        rounds = [in_subprocess(__file__, "--one", "act", folder) for _ in range(chosen.repeats)]
    print(f"load: {spread([one['load'] for one in rounds])} s")
    print(f"act:  {spread([one['act'] * 1e6 for one in rounds])} us")


if __name__ == "__main__":
    main()
