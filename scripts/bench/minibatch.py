"""Microseconds that the learner takes for one minibatch on a CPU: rows taken, policy evaluated, losses, backward, and
the optimizer's step.

    python scripts/bench/minibatch.py [--rows 256 2048 16384] [--threads 1 2] [--repeats 5] [--beside CHECKOUT ...]

Four minibatches of so many rows and four passes, made-up experience of CartPole, the settings that are the defaults.
Each learner is a process of its own. `--beside` takes turns with the same on other checkouts of this project. In the
table: the median of all minibatches, and the fastest one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import arguments, describe_machine

HORIZON = 128
MINIBATCHES, UPDATE_EPOCHS = 4, 4
WARM_UP = 2
"""Epochs that are not timed."""


def epochs_for(rows: int) -> int:
    """Epochs to time: about a second's worth."""
    return max(3, min(40, 100_000 // rows))


def minibatch_seconds(rows: int, threads: int) -> list[float]:
    """Of each minibatch."""
    import gymnasium
    import numpy as np

    from orchestrator import CollectionConfig, LearningConfig, MetricsConfig, TrainerConfig
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
    spaces = Spaces(gymnasium.spaces.Box(-5.0, 5.0, (4,)), gymnasium.spaces.Discrete(2))
    config = TrainerConfig(
        total_agent_steps=10**9,
        collection=CollectionConfig(num_environments=segments, horizon=HORIZON, backend="inline"),
        learning=LearningConfig(minibatches=MINIBATCHES, update_epochs=UPDATE_EPOCHS, threads=threads),
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
        elif array.dtype == np.float32:
            array[...] = draw.standard_normal(array.shape)
    learner.prepare(spec)
    seconds: list[float] = []
    for epoch in range(WARM_UP + epochs_for(rows)):
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
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(minibatch_seconds(*map(int, chosen.one))))
        return
    print(describe_machine())
    here = Path(__file__).resolve()
    checkouts = [here.parents[2], *chosen.beside]
    for threads in chosen.threads:
        for rows in chosen.rows:
            seconds: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
            for _ in range(chosen.repeats):
                for checkout in checkouts:
                    seconds[checkout] += measured_on(checkout, here, rows, threads)
            for checkout, of in seconds.items():
                middle, least = 1e6 * statistics.median(of), 1e6 * min(of)
                print(f"{threads} threads {rows:6} rows {middle:9.0f} us (fastest {least:.0f})  {checkout}", flush=True)


def measured_on(checkout: Path, script: Path, rows: int, threads: int) -> list[float]:
    """What a process finds that imports the packages of `checkout`."""
    command = [sys.executable, str(script), "--one", str(rows), str(threads)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(checkout)}
    )
    return json.loads(result.stdout)


if __name__ == "__main__":
    main()
