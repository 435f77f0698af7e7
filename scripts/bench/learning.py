"""What is learned, and how fast: the mean return of the last 100 episodes over agent steps and seconds, for tasks and
seeds, and for variants of the settings side by side.

    python scripts/bench/learning.py --tasks lunar_lander acrobot --seeds 1 2 3 4 5 \
        --vary staleness=0 staleness=0.25 staleness=1 --results /tmp/learning.jsonl

`--peer` adds stable-baselines3's PPO with its zoo's settings where the zoo has some, for as many agent steps (needs the
`bench` dependency group); `--picture FILE.svg` draws the curves: medians over seeds, and the band between the worst and
the best seed. `--table` prints them as the table of presets in docs/benchmarks.md.

Tasks train with the presets of the package, those called `..._defaults` with the defaults; those of tasks.py, and those
whose presets need an extra, need a package more. `--vary` compares settings: each word is a variant, several settings
of one are joined by commas (`staleness=1,learning.refresh=false`). Every training is a line in the `--results` file,
and is not repeated when the same command is run again, so that a long comparison can be done in pieces.

At the end: per task and variant the seeds that reached the threshold, and medians over seeds; then for all tasks
together the interquartile mean of the final returns, scaled so that 0 is what random actions get and 1 the threshold,
with the 95 % interval of a bootstrap over the seeds of each task (Agarwal et al. 2021, "Deep reinforcement learning at
the edge of the statistical precipice").
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import describe_machine, in_subprocess, spread
from zoo import ZOO
from zoo import curve as peer_curve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator import TrainerConfig

MIN_EPISODES = 100
CURVE_POINTS = 60
COLUMNS = 3
PEER = "stable-baselines3"
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Task:
    """What to train, and when it counts as learned."""

    environment: str
    random: float
    """Mean return of random actions."""
    threshold: float
    """Of the mean return of the last 100 episodes."""
    preset: str | None = None
    """Name of the settings to train with (None: the defaults)."""
    steps: int | None = None
    """Agent steps of a training (None: those of the preset)."""
    network: str | None = None
    """Instead of the preset's (None: its own)."""

    def score(self, final: float | None) -> float:
        """A mean return on the scale from what random actions get, 0, to the threshold, 1."""
        return 0.0 if final is None else (final - self.random) / (self.threshold - self.random)


MEMORY = "orchestrator.environments.memory:make"
TASKS = {
    "cartpole": Task("CartPole-v1", 22.0, 475.0, "cartpole"),
    "acrobot": Task("Acrobot-v1", -500.0, -100.0, "acrobot"),
    "pendulum": Task("Pendulum-v1", -1174.0, -250.0, "pendulum"),
    "mountain_car_continuous": Task("MountainCarContinuous-v0", -33.0, 90.0, "mountain_car_continuous"),
    "lunar_lander": Task("LunarLander-v3", -186.0, 200.0, "lunar_lander"),
    "half_cheetah": Task("HalfCheetah-v5", -264.0, 1000.0, "half_cheetah"),
    "hopper": Task("Hopper-v5", 18.0, 1000.0, "hopper"),
    "walker2d": Task("Walker2d-v5", 2.0, 1000.0, "walker2d"),
    "bipedal_walker": Task("BipedalWalker-v3", -100.0, 200.0, "bipedal_walker"),
    "door_key": Task("minigrid:MiniGrid-DoorKey-6x6-v0", 0.0, 0.9, "door_key"),
    "frozen_lake": Task("FrozenLake-v1", 0.0, 0.7, "frozen_lake"),
    "mettagrid": Task("mettagrid/arena", 5.0, 100.0, "mettagrid"),
    "memory": Task(MEMORY, 0.0, 0.9, "memory"),
    # Which no network without memory can solve: its mean return stays at 0 in the long run.
    "memory_mlp": Task(MEMORY, 0.0, 0.9, "memory", network="mlp"),
    "pendulum_defaults": Task("Pendulum-v1", -1174.0, -250.0, steps=300_000),
    "half_cheetah_defaults": Task("HalfCheetah-v5", -264.0, 1000.0, steps=600_000),
    "half_cheetah_bins_defaults": Task("tasks:half_cheetah_bins", -264.0, 1000.0, steps=600_000),
    "breakout_defaults": Task("tasks:breakout", 0.5, 5.0, steps=200_000),
    "space_invaders_defaults": Task("tasks:space_invaders", 3.0, 30.0, steps=200_000),
}


def configured(task: Task, seed: int, variant: str) -> TrainerConfig:
    """The settings of one training."""
    from orchestrator import TrainerConfig, from_table, read_preset

    config = TrainerConfig() if task.preset is None else read_preset(task.preset)
    config = replace(config, seed=seed, run_dir=None, environment=task.environment)
    if task.steps is not None:
        config = replace(config, total_agent_steps=task.steps)
    if task.network is not None:
        config = replace(config, policy=replace(config.policy, network=task.network))
    config = replace(config, metrics=replace(config.metrics, progress="off"))
    for assignment in filter(None, variant.split(",")):
        path, _, text = assignment.partition("=")
        section, _, name = path.rpartition(".")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        changed = getattr(from_table({section: {name: value}} if section else {name: value}), section or name)
        if section:
            changed = replace(getattr(config, section), **{name: getattr(changed, name)})
        config = replace(config, **{section or name: changed})
    return config


def train(task: Task, seed: int, variant: str, to_threshold: bool) -> dict[str, Any]:
    """Train once; `steps` and `seconds` (of training, the start of the workers left out) are None if not learned. The
    `curve` is a list of agent steps, seconds and mean return, `warnings` the kinds of what the run said was wrong."""
    import anyio

    from orchestrator import Trainer

    curve: list[tuple[int, float, float | None]] = []
    warnings: set[str] = set()
    result: dict[str, Any] = {"steps": None, "seconds": None, "final": None, "total_seconds": None}

    async def main() -> None:
        async with Trainer(configured(task, seed, variant)).start() as run:
            async for state in run.states():
                tracker, timer = state.stats_tracker, state.timer
                assert tracker is not None
                assert timer is not None
                mean = tracker.recent_mean("episode_return")
                curve.append((state.agent_step, round(timer.seconds, 2), mean))
                if state.results and "learning_problems" in state.results:
                    problems: Any = state.results["learning_problems"]
                    warnings.update(problems.value)
                if result["steps"] is not None or mean is None or tracker.episodes < MIN_EPISODES:
                    continue
                if mean >= task.threshold:
                    result["steps"], result["seconds"] = state.agent_step, timer.seconds
                    if to_threshold:
                        run.stop("learned")

    anyio.run(main)
    return result | ending(curve) | {"warnings": sorted(warnings)}


def train_peer(task: Task, seed: int, steps: int, to_threshold: bool) -> dict[str, Any]:
    """As `train`, by stable-baselines3."""
    points = peer_curve(task.environment, seed, steps, until=task.threshold if to_threshold else math.inf)
    learned = next((point for point in points if point[2] is not None and point[2] >= task.threshold), (None, None))
    return {"steps": learned[0], "seconds": learned[1]} | ending(points)


def ending(curve: Sequence[tuple[int, float, float | None]]) -> dict[str, Any]:
    """What the last point of a curve says, and some of its points."""
    chosen = np.unique(np.linspace(0, len(curve) - 1, CURVE_POINTS).round().astype(int))
    _, seconds, final = curve[-1]
    return {"final": final, "total_seconds": seconds, "curve": [curve[index] for index in chosen]}


def draw(file: Path, results: Mapping[tuple[str, int, str], dict[str, Any]], names: Sequence[str]) -> None:
    """The curves of all tasks over agent steps, as one picture."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "curves", "svg.fonttype": "none"}
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(name for name, _, _ in results))
    height = -(-len(tasks) // COLUMNS)
    figure, plots = plt.subplots(height, COLUMNS, figsize=(9.6, 2.6 * height), squeeze=False, layout="constrained")
    for name, plot in itertools.zip_longest(tasks, plots.flat):
        if name is None:
            plot.set_axis_off()
            continue
        for place, variant in enumerate(names):
            curves = [one["curve"] for (task, _, own), one in results.items() if (task, own) == (name, variant)]
            if not curves:
                continue
            grid = np.linspace(0, statistics.median(curve[-1][0] for curve in curves), CURVE_POINTS)
            known = [np.array([point for point in curve if point[2] is not None], float) for curve in curves]
            lines = np.array([np.interp(grid, one[:, 0], one[:, 2], left=np.nan) for one in known])
            seen = ~np.isnan(lines).any(axis=0)
            color = f"C{place}"
            plot.plot(grid[seen] / 1000, np.median(lines[:, seen], axis=0), color=color, label=variant or "ours")
            low, high = lines[:, seen].min(axis=0), lines[:, seen].max(axis=0)
            plot.fill_between(grid[seen] / 1000, low, high, color=color, alpha=0.15, linewidth=0)
        plot.axhline(TASKS[name].threshold, color="gray", linewidth=0.8, linestyle=":")
        plot.spines[["top", "right"]].set_visible(False)
        plot.set_title(TASKS[name].environment.rpartition(".")[2].removeprefix("tasks:"), fontsize="medium")
        plot.set_ylim(bottom=TASKS[name].random)
    plots[0][0].legend(frameon=False, fontsize="small")
    figure.supxlabel("thousands of agent steps", fontsize="medium")
    figure.supylabel("mean return of the last 100 episodes", fontsize="medium")
    figure.savefig(file, metadata={"Date": None})


def report(name: str, results: Sequence[dict[str, Any]]) -> None:
    """One line: how many seeds have learned, and the medians of those."""
    learned = [result for result in results if result["steps"] is not None]
    parts = [f"  {name or 'as they are':34}  {len(learned)} of {len(results)} seeds"]
    if learned:
        parts.append(f"{spread([result['steps'] for result in learned])} agent steps")
        parts.append(f"{spread([result['seconds'] for result in learned])} s")
    if warned := sorted({kind for result in results for kind in result.get("warnings", ())}):
        parts.append(f"warned of {', '.join(warned)}")
    finals = [result["final"] for result in results if result["final"] is not None]
    if finals:
        parts.append(f"at the end {spread(finals)}, {statistics.median(r['total_seconds'] for r in results):.3g} s")
    print("  ".join(parts), flush=True)


def table_row(name: str, results: Sequence[dict[str, Any]]) -> str:
    """A row of Markdown: what the threshold takes, and what is reached, as median (worst to best seed)."""
    task, learned = TASKS[name], [result for result in results if result["steps"] is not None]
    steps = statistics.median(result["steps"] for result in learned) if learned else math.nan
    finals = sorted(result["final"] for result in results)
    seconds = statistics.median(result["total_seconds"] for result in results)
    until = max(point[0] for result in results for point in result["curve"])
    environment = task.environment.rpartition(":")[2] if ":" in task.environment else task.environment
    return (
        f"| {name} | {environment} | {statistics.median(finals):,.4g} ({finals[0]:,.4g} to {finals[-1]:,.4g}) |"
        f" {task.threshold:,.4g} | {len(learned)} of {len(results)}, {steps:,.0f} | {until:,} | {seconds:.0f} |"
    )


def interquartile_mean(scores: np.ndarray[Any, Any]) -> float:
    """The mean of the middle half."""
    ordered = np.sort(scores)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def overall(scores: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Interquartile mean of the scores of all tasks and seeds, and its 95 % interval."""
    draw = np.random.default_rng(0)
    means = [
        interquartile_mean(np.concatenate([draw.choice(task, len(task)) for task in scores])) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return interquartile_mean(np.concatenate([np.array(task) for task in scores])), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=" ".join(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--vary", nargs="+", default=[""], metavar="SETTING=VALUE[,...]", help="variants to compare")
    parser.add_argument("--results", type=Path, help="file of what has been trained (default: remember nothing)")
    parser.add_argument("--to-threshold", action="store_true", help="end each run when it has learned")
    parser.add_argument("--peer", action="store_true", help="beside stable-baselines3, with its zoo's settings")
    parser.add_argument("--picture", type=Path, help="draw the curves into this file (SVG)")
    parser.add_argument("--table", action="store_true", help="print a row of Markdown for each task")
    parser.add_argument("--one", nargs=3, metavar=("TASK", "SEED", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, seed, variant = options.one
        task = TASKS[name]
        if variant == PEER:
            steps = configured(task, int(seed), "").total_agent_steps
            print(json.dumps(train_peer(task, int(seed), steps, options.to_threshold)))
        else:
            print(json.dumps(train(task, int(seed), variant, options.to_threshold)))
        return
    print(describe_machine())
    variants = [*options.vary, *([PEER] if options.peer else [])]
    known = train_all(options.tasks, options.seeds, variants, options.results, to_threshold=options.to_threshold)
    for name in options.tasks:
        print(f"{name}: mean return of the last {MIN_EPISODES} episodes >= {TASKS[name].threshold:g}")
        for variant in variants:
            if results := [known[name, seed, variant] for seed in options.seeds if (name, seed, variant) in known]:
                report(variant, results)
    shared = [name for name in options.tasks if all((name, options.seeds[0], variant) in known for variant in variants)]
    print(
        f"interquartile mean of the final returns (0: random, 1: the threshold), 95 % interval, of {len(shared)} tasks"
    )
    for variant in variants if shared else ():
        mean, low, high = overall(
            [[TASKS[name].score(known[name, seed, variant]["final"]) for seed in options.seeds] for name in shared]
        )
        print(f"  {variant or 'as they are':34}  {mean:.3f} ({low:.3f} to {high:.3f})")
    if options.table:
        for name, variant in itertools.product(options.tasks, variants):
            print(table_row(name, [known[name, seed, variant] for seed in options.seeds]))
    if options.picture is not None:
        draw(options.picture, known, variants)


def train_all(
    tasks: Sequence[str], seeds: Sequence[int], variants: Sequence[str], file: Path | None, *, to_threshold: bool
) -> dict[tuple[str, int, str], dict[str, Any]]:
    """The results of all trainings by task, seed and variant; those that the file has are not repeated. Tasks that the
    peer has no settings for are left out."""
    before: dict[tuple[str, int, str], dict[str, Any]] = {}
    if file is not None and file.exists():
        for line in file.read_text().splitlines():
            result = json.loads(line)
            before[result["task"], result["seed"], result["variant"]] = result
    known: dict[tuple[str, int, str], dict[str, Any]] = {}
    for seed in seeds:  # so that an interrupted comparison has the same seeds of all
        for name, variant in itertools.product(tasks, variants):
            key = name, seed, variant
            if variant == PEER and TASKS[name].environment not in ZOO:
                continue
            if key not in before:
                flags = ["--to-threshold"] if to_threshold else []
                result = in_subprocess(__file__, "--one", *key, *flags)
                before[key] = result = {"task": name, "seed": seed, "variant": variant, **result}
                print("  ".join(f"{of} {_shown(value)}" for of, value in result.items() if of != "curve"), flush=True)
                if file is not None:
                    with file.open("a") as lines:
                        lines.write(json.dumps(result) + "\n")
            known[key] = before[key]
    return known


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
