"""Microseconds that the learner takes for one minibatch on a CPU: rows taken, policy evaluated, losses, backward, and
the optimizer's step.

    python scripts/bench/minibatch.py [--rows 256 2048 16384] [--threads 1 2] [--repeats 5] [--beside CHECKOUT ...]
                                      [--networks mlp cnn lstm tokens] [--variants float32 bfloat16]

Four minibatches of so many rows and four passes, made-up experience of CartPole (for `cnn`, of images 36 x 36 x 3; for
`tokens`, of 10 to 100 tokens out of 500, about as many different ones as in MettaGrid's arena), the settings that are
the defaults. Each learner is a process of its own.
`--beside` takes turns with the same on other checkouts of this project, `--variants` with the same with other settings.
In the table: the median of all minibatches, and the fastest one.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import arguments, describe_machine

HORIZON = 128
MINIBATCHES, UPDATE_EPOCHS = 4, 4
WARM_UP = 2
"""Epochs that are not timed."""


VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "compile": {"compile": True},
}
"""Of the settings of learning."""
COSTS = {"mlp": 1, "cnn": 64, "lstm": 4, "tokens": 16}
"""Of a row, about."""


def epochs_for(rows: int, network: str) -> int:
    """Epochs to time: about a second's worth."""
    return max(1, min(40, 100_000 // (rows * COSTS[network])))


def minibatch_seconds(rows: int, threads: int, network: str, variant: str) -> list[float]:
    """Of each minibatch."""
    import gymnasium
    import numpy as np

    from orchestrator import CollectionConfig, LearningConfig, MetricsConfig, PolicyConfig, TrainerConfig
    from orchestrator.collection.experience_fields import experience_fields
    from orchestrator.learning.default_losses import default_losses
    from orchestrator.learning.learner import Learner
    from orchestrator.learning.messages import LearnerPlan, LearnRequest
    from orchestrator.policies import Spaces
    from orchestrator.workers.interrupt import Interrupt
    from orchestrator.workers.slots import SlotRef
    from state.experience import ExperienceSpec
    from state.policy_point import PolicyPoint
    from state.shared_memory import SharedBuffer
    from state.trainer_state import TrainerState

    segments = rows * MINIBATCHES // HORIZON
    observation = gymnasium.spaces.Box(-5.0, 5.0, (4,))
    if network == "cnn":
        observation = gymnasium.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    elif network == "tokens":
        observation = gymnasium.spaces.Box(0, 255, (500, 3), np.uint8)
    spaces = Spaces(observation, gymnasium.spaces.Discrete(2))
    config = TrainerConfig(
        total_agent_steps=10**9,
        collection=CollectionConfig(num_environments=segments, horizon=HORIZON, backend="inline"),
        learning=LearningConfig(
            minibatches=MINIBATCHES, update_epochs=UPDATE_EPOCHS, threads=threads, **VARIANTS[variant]
        ),
        policy=PolicyConfig(network=network),
        metrics=MetricsConfig(trace=True),
    )
    plan = LearnerPlan(
        config=config,
        losses=default_losses(config),
        spaces=spaces,
        device="cpu",
        max_threads=threads,
        interrupt=Interrupt(),
    )
    learner = Learner(plan)
    described = learner.describe()
    fields = experience_fields(spaces, described.recurrent_state_size, refreshes=config.refreshes)
    spec = ExperienceSpec.merge(segments, HORIZON, {"bench": [*fields, *described.fields]})
    experience, weights = SharedBuffer.create(spec.nbytes), SharedBuffer.create(described.layout.nbytes)
    draw = np.random.default_rng(1)
    for name, array in spec.arrays(experience.map_shared()).items():
        if name == "action":
            array[...] = draw.integers(0, 2, array.shape)
        elif name == "valid":
            array[...] = True
        elif name == "log_prob":
            array[...] = np.log(0.5)
        elif name.startswith("observation") and array.dtype == np.uint8:
            array[...] = draw.integers(0, 256, array.shape)
            if network == "tokens":
                array[...] %= np.array([121, 8, 8], np.uint8)
                lengths = draw.integers(10, 101, array.shape[:2])
                array[np.arange(array.shape[2]) >= lengths[..., None]] = 255
        elif array.dtype == np.float32:
            array[...] = draw.standard_normal(array.shape)
    learner.prepare(spec)
    seconds: list[float] = []
    for epoch in range(WARM_UP + epochs_for(rows, network)):
        request = LearnRequest(
            state=TrainerState(epoch=epoch),
            experience=SlotRef("experience", 0, experience),
            behavior=PolicyPoint(epoch),
            publish_to=SlotRef("policy", 0, weights),
            version=epoch + 1,
            steps_before=0,
            rollout_start=None,
        )
        spans = learner.learn(request).spans  # type: ignore[union-attr]
        if epoch >= WARM_UP:
            seconds += [span.ended - span.began for span in spans if span.name == "minibatch"]
    return seconds


def main() -> None:
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 2048, 16384])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--beside", type=Path, nargs="+", default=[], help="other checkouts")
    parser.add_argument("--networks", nargs="+", default=["mlp"], choices=list(COSTS))
    parser.add_argument("--variants", nargs="+", default=["float32"], choices=list(VARIANTS))
    chosen = parser.parse_args()
    if chosen.one:
        rows, threads, network, variant = chosen.one
        print(json.dumps(minibatch_seconds(int(rows), int(threads), network, variant)))
        return
    print(describe_machine())
    here = Path(__file__).resolve()
    checkouts: list[Path] = [here.parents[2], *chosen.beside]
    compared: list[tuple[Path, str]] = list(itertools.product(checkouts, chosen.variants))
    for network, threads, rows in itertools.product(chosen.networks, chosen.threads, chosen.rows):
        seconds: dict[tuple[Path, str], list[float]] = {one: [] for one in compared}
        for _ in range(chosen.repeats):
            for checkout, variant in compared:
                seconds[checkout, variant] += measured_on(checkout, here, rows, threads, network, variant)
        for (checkout, variant), of in seconds.items():
            middle, least = 1e6 * statistics.median(of), 1e6 * min(of)
            what = f"{network} {threads} threads {rows:6} rows {variant:17}"
            print(f"{what} {middle:9.0f} us (fastest {least:.0f})  {checkout}", flush=True)


def measured_on(checkout: Path, script: Path, *what: object) -> list[float]:
    """What a process finds that imports the packages of `checkout`."""
    command = [sys.executable, str(script), "--one", *map(str, what)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(checkout)}
    )
    return json.loads(result.stdout)


if __name__ == "__main__":
    main()
