"""Epoch time with an evaluation running all the time, against none, where a core is free for it.

    python scripts/bench/evaluation_cost.py [--repeats 5] [--epochs 60]

Collector and learner take turns (staleness 0) with one thread each, so that they keep one core busy; the evaluator
has another. On a machine with two cores those are all of them: the host and whatever else runs there are in the
figure. Both sides in turn, in processes of their own, with the same work epoch by epoch. `busy` is the evaluator's
share of the time, which must be near 1 for the figure to mean anything.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import arguments, describe_machine, epoch_seconds, in_subprocess, spread, verdict

GOAL = 1.03
WARM_UP = 10
"""Epochs that are not timed: in the first the evaluator starts."""
ENVIRONMENTS = 64


def measure(evaluated: bool, epochs: int) -> dict[str, float]:
    """Median seconds per epoch, and the share of the time in which the evaluation hook was at work."""
    from orchestrator import CollectionConfig, LearningConfig, TrainerConfig
    from orchestrator.evaluation.plan import evaluation_plans
    from orchestrator.hooks.included.evaluation import EvaluationHook

    config = TrainerConfig(
        total_agent_steps=10**9,
        staleness=0,
        device="cpu",
        collection=CollectionConfig(num_environments=ENVIRONMENTS, horizon=128),
        learning=LearningConfig(threads=1),
    )
    # A newer request replaces the one that waits: with one for each epoch the evaluator is never out of work.
    hook = EvaluationHook(evaluation_plans(config), every=1)
    seconds = epoch_seconds(config, WARM_UP + epochs, warm_up=1, hooks=[hook] if evaluated else [])
    measured = {"epoch": statistics.median(seconds[WARM_UP:])}
    if evaluated:
        kept = hook.run.hook_statistics()["evaluation"]
        measured |= {"busy": kept.busy_seconds / sum(seconds), "evaluations": kept.handled}
    return measured


def main() -> None:
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--epochs", type=int, default=60, help="epochs timed in each round (default: %(default)s)")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one[0] == "evaluated", int(chosen.one[1]))))
        return
    print(describe_machine())
    print(f"CartPole-v1, {ENVIRONMENTS} environments, horizon 128, MLP 64-64, staleness 0, 1 thread; ms per epoch")
    with_it: list[dict[str, float]] = []
    without: list[dict[str, float]] = []
    for number in range(chosen.repeats):
        sides = [("evaluated", with_it), ("alone", without)]
        for name, results in sides if number % 2 else reversed(sides):
            results.append(in_subprocess(__file__, "--one", name, chosen.epochs))
    for name, results in (("no evaluation", without), ("evaluation", with_it)):
        print(f"{name:14}  {spread([one['epoch'] * 1e3 for one in results])} ms")
    print(f"busy            {spread([one['busy'] for one in with_it])}")
    print(f"evaluations     {spread([one['evaluations'] for one in with_it])}")
    ratios = [one["epoch"] / other["epoch"] for one, other in zip(with_it, without, strict=True)]
    print(f"ratio           {spread(ratios)}  ({verdict(statistics.median(ratios), GOAL)})")


if __name__ == "__main__":
    main()
