"""Agent steps per second of the whole training loop on Pong from pixels, beside stable-baselines3 and LeanRL: the same
Nature CNN, environments and hyperparameters, all in one run and in turn.

    python scripts/bench/pong.py [--repeats 3] [--leanrl LeanRL/leanrl/ppo_atari_envpool_torchcompile.py]

Needs the `atari` extra and the `bench` dependency group. `--leanrl` names LeanRL's script, see leanrl.py. Peers get the
number of threads with which they are fastest.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import leanrl
from measure import arguments, describe_machine, epoch_seconds, in_subprocess, spread

ENVIRONMENTS, HORIZON, MINIBATCHES, UPDATE_EPOCHS, LEARNING_RATE = 8, 128, 4, 4, 2.5e-4
STEPS = ENVIRONMENTS * HORIZON
ENVIRONMENT = "orchestrator.environments.atari:make"
WARM_UP, EPOCHS = 2, 4


def ours(staleness: int, collectors: int, threads: int, bfloat16: int = 0) -> list[float]:
    """Seconds of each epoch; `threads` 0 leaves their number to the trainer."""
    from orchestrator import CollectionConfig, LearningConfig, TrainerConfig

    config = TrainerConfig(
        environment=ENVIRONMENT,
        total_agent_steps=STEPS * 10_000,
        staleness=staleness,
        collection=CollectionConfig(num_environments=ENVIRONMENTS, collectors=collectors, horizon=HORIZON),
        learning=LearningConfig(
            update_epochs=UPDATE_EPOCHS,
            minibatches=MINIBATCHES,
            learning_rate=LEARNING_RATE,
            threads=threads or None,
            precision="bfloat16" if bfloat16 else "float32",
        ),
    )
    return epoch_seconds(config, EPOCHS, warm_up=WARM_UP)


def stable_baselines3(threads: int, environments: int = ENVIRONMENTS, device: str = "cpu") -> list[float]:
    """Seconds of each iteration."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    from orchestrator.environments.atari import make

    torch.set_num_threads(threads)
    starts: list[float] = []

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            starts.append(time.perf_counter())

    model = PPO(
        "CnnPolicy",
        make_vec_env(make, environments, seed=1),
        n_steps=HORIZON,
        batch_size=environments * HORIZON // MINIBATCHES,
        n_epochs=UPDATE_EPOCHS,
        learning_rate=LEARNING_RATE,
        ent_coef=0.01,
        device=device,
        seed=1,
    )
    model.learn(environments * HORIZON * (WARM_UP + EPOCHS + 1), callback=Clock())
    return [after - before for before, after in pairwise(starts[WARM_UP:])]


def leanrl_seconds(
    script: Path, threads: int, environments: int = ENVIRONMENTS, environment: str = ENVIRONMENT
) -> list[float]:
    """Seconds of each iteration."""
    return leanrl.iteration_seconds(
        script, environment, environments, threads, EPOCHS, warm_up=WARM_UP, learning_rate=LEARNING_RATE
    )


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--leanrl", type=Path)
    parser.add_argument("--variants", action="store_true", help="also other settings of ours, to find the fastest")
    chosen = parser.parse_args()
    if chosen.one:
        who, *rest = chosen.one
        if who == "leanrl":
            seconds = leanrl_seconds(Path(rest[0]), int(rest[1]))
        else:
            measured: dict[str, Any] = {"ours": ours, "sb3": stable_baselines3}
            seconds = measured[who](*map(int, rest))
        print(json.dumps(STEPS / statistics.median(seconds)))
        return
    print(describe_machine())
    print(
        f"Pong, uint8 [84, 84, 4], Nature CNN, {ENVIRONMENTS} environments, horizon {HORIZON}, {MINIBATCHES}"
        f" minibatches, {UPDATE_EPOCHS} update epochs"
    )
    contenders: dict[str, tuple[object, ...]] = {
        "ours, staleness 1": ("ours", 1, 1, 0),
        "ours, staleness 0, 2 collectors": ("ours", 0, 2, 0),
        "ours, staleness 1, bfloat16": ("ours", 1, 1, 0, 1),
        "ours, staleness 1, 2 collectors, bfloat16": ("ours", 1, 2, 0, 1),
        "stable-baselines3, 1 thread": ("sb3", 1),
        "stable-baselines3, 2 threads": ("sb3", 2),
    }
    if chosen.variants:
        for staleness in (0, 1):
            for collectors in (1, 2):
                for threads in (1, 2):
                    name = f"ours, staleness {staleness}, {collectors} collectors, {threads} threads"
                    contenders[name] = ("ours", staleness, collectors, threads)
    if chosen.leanrl is not None:
        for threads in (1, 2):
            contenders[f"LeanRL, {threads} threads"] = ("leanrl", chosen.leanrl, threads)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(chosen.repeats):
        for name, contender in contenders.items():
            rates[name].append(in_subprocess(__file__, "--one", *contender))
    peer = max(statistics.median(values) for name, values in rates.items() if not name.startswith("ours"))
    for name, values in rates.items():
        print(f"{name:42}  {spread(values)} steps/s  {statistics.median(values) / peer:.2f} x the fastest peer")


if __name__ == "__main__":
    main()
