"""Agent steps per second of the whole training loop, beside stable-baselines3's PPO and, where they are given, LeanRL's
and PufferLib's: networks of the same size, CartPole, and as many environments, steps, minibatches and update epochs,
all in one run and in turn.

    python scripts/bench/throughput.py [--environments 8 64 512] [--repeats 5]
        [--leanrl LeanRL/leanrl/ppo_atari_envpool_torchcompile.py] [--pufferlib pufferlib-3.0.0]

Needs the `bench` dependency group; for the other peers, see leanrl.py and puffer.py. LeanRL steps our environments, and
PufferLib its own, which are in C. Peers get the number of torch threads with which they are fastest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import leanrl
import puffer
from measure import describe_machine, in_subprocess, spread

HORIZON, MINIBATCHES, UPDATE_EPOCHS = 128, 4, 4
WARM_UP = 3


def epochs_for(environments: int) -> int:
    """Epochs to measure: a few seconds' worth."""
    return {8: 60, 64: 30}.get(environments, 10) + WARM_UP


def iterations_for(environments: int) -> int:
    """Of a peer, which takes longer."""
    return max(4, epochs_for(environments) // 3)


def ours(environments: int, staleness: int) -> list[float]:
    """Seconds of each epoch."""
    import anyio

    from orchestrator import CollectionConfig, LearningConfig, Trainer, TrainerConfig

    config = TrainerConfig(
        total_agent_steps=environments * HORIZON * 10_000,
        staleness=staleness,
        collection=CollectionConfig(num_environments=environments, horizon=HORIZON),
        learning=LearningConfig(update_epochs=UPDATE_EPOCHS, minibatches=MINIBATCHES, learning_rate=3e-4),
    )
    ends: list[tuple[float, int]] = []

    async def main() -> None:
        async with Trainer(config).start() as run:
            async for state in run.states():
                ends.append((time.perf_counter(), state.agent_step))
                if len(ends) == epochs_for(environments):
                    run.stop()

    anyio.run(main)
    return [
        (after[0] - before[0]) / (after[1] - before[1])
        for before, after in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False)
    ]


def stable_baselines3(environments: int, threads: int, device: str = "cpu") -> list[float]:
    """Seconds per agent step of each iteration."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(threads)
    starts: list[float] = []

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            starts.append(time.perf_counter())

    steps = environments * HORIZON
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", environments, seed=1),
        n_steps=HORIZON,
        batch_size=steps // MINIBATCHES,
        n_epochs=UPDATE_EPOCHS,
        learning_rate=3e-4,
        ent_coef=0.01,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        device=device,
        seed=1,
    )
    model.learn(steps * iterations_for(environments), callback=Clock())
    return [(after - before) / steps for before, after in itertools.pairwise(starts[1:])]


def seconds_per_step(who: str, environments: int, variant: int, arguments: argparse.Namespace) -> list[float]:
    """Of each epoch; `variant` is the staleness of ours, and the number of threads of a peer."""
    if who == "ours":
        return ours(environments, variant)
    if who == "stable-baselines3":
        return stable_baselines3(environments, variant)
    if who == "LeanRL":
        seconds = leanrl_seconds(arguments.leanrl, variant, environments)
    else:
        seconds = puffer.iteration_seconds(
            arguments.pufferlib, environments, variant, iterations_for(environments), warm_up=WARM_UP, horizon=HORIZON
        )
    return [one / (environments * HORIZON) for one in seconds]


def leanrl_seconds(script: Path, threads: int, environments: int) -> list[float]:
    """Of each iteration."""
    iterations = iterations_for(environments)
    return leanrl.iteration_seconds(
        script, "CartPole-v1", environments, threads, iterations, warm_up=WARM_UP, horizon=HORIZON, network=leanrl.mlp()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--leanrl", type=Path, help="its script")
    parser.add_argument("--pufferlib", type=Path, help="its folder")
    parser.add_argument("--one", nargs=3, metavar=("WHO", "ENVIRONMENTS", "VARIANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        who, environments, variant = arguments.one
        print(json.dumps(1.0 / statistics.median(seconds_per_step(who, int(environments), int(variant), arguments))))
        return
    print(describe_machine())
    print(f"CartPole-v1, MLP 64-64, horizon {HORIZON}, {MINIBATCHES} minibatches, {UPDATE_EPOCHS} update epochs")
    given = {"LeanRL": arguments.leanrl, "PufferLib": arguments.pufferlib}
    places = [word for name, path in given.items() if path for word in (f"--{name.lower()}", path)]
    peers = ["stable-baselines3", *(name for name, path in given.items() if path)]
    for environments in arguments.environments:
        contenders = {f"ours, staleness {staleness}": ("ours", staleness) for staleness in (1, 0)}
        contenders |= {f"{peer}, {threads} threads": (peer, threads) for peer in peers for threads in (1, 2)}
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(arguments.repeats):
            for name, (who, variant) in contenders.items():
                rates[name].append(in_subprocess(__file__, *places, "--one", who, environments, variant))
        peer = max(statistics.median(values) for name, values in rates.items() if contenders[name][0] != "ours")
        for name, values in rates.items():
            ratio = statistics.median(values) / peer
            print(f"{environments:4} environments  {name:28}  {spread(values)} steps/s  {ratio:.2f} x", flush=True)


if __name__ == "__main__":
    main()
