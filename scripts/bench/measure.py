"""What the benchmarks share: trainings timed epoch by epoch, contenders in processes of their own, and medians with
their spread."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from orchestrator import Hook, TrainerConfig

WARM_UP = 3
"""Epochs at the beginning of a training that are not timed."""


def in_subprocess(script: str, *arguments: object) -> Any:
    """Run `script` with arguments in a process of its own; the object that its last line of output says in JSON."""
    command = [sys.executable, script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def epoch_seconds(
    config: TrainerConfig,
    epochs: int,
    *,
    warm_up: int = WARM_UP,
    drain: float = 0.1,
    hooks: Sequence[Hook] = (),
    beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> list[float]:
    """Train, and return the seconds of each of `epochs` epochs after the first `warm_up`.

    `beside` runs in the host's event loop meanwhile; hooks have `drain` seconds at the end. The same seed means the
    same work, epoch by epoch, whatever the hooks do: trainings can be compared so.
    """
    import anyio

    from orchestrator import Trainer

    ends: list[float] = []

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            if beside is not None:
                tasks.start_soon(beside)
            async with Trainer(config, hooks=hooks).start() as run:
                run.limit_drain(drain)
                async for _ in run.states():
                    ends.append(time.perf_counter())
                    if len(ends) == warm_up + epochs:
                        run.stop()
            tasks.cancel_scope.cancel()

    anyio.run(main)
    timed = ends[warm_up - 1 : warm_up + epochs]  # without epochs that were on their way when the run was stopped
    return [after - before for before, after in pairwise(timed)]


def arguments(description: str | None, *, repeats: int, environments: Sequence[int] = ()) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark; `--one` is how a script calls itself in a process of its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds of all contenders (default: %(default)s)")
    if environments:
        parser.add_argument("--environments", type=int, nargs="+", default=[*environments])
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    return parser


def percentile(values: Sequence[float], share: float) -> float:
    """The value that the `share` (0 to 1) smallest do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def standard_error(values: Sequence[float]) -> float:
    """Of the median of independent, roughly normal values."""
    return 1.25 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def verdict(value: float, goal: float) -> str:
    """The goal beside a value that is to be below it."""
    return f"goal {goal:g}: {'met' if value <= goal else 'MISSED'}"


def describe_machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f} before the start" if hasattr(os, "getloadavg") else ""
    return f"{cores} cores, {platform.machine()}, Python {platform.python_version()}{load}"
