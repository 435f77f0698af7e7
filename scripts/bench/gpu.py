"""What a GPU machine shows: checks that training on the device is right, and figures of where its time goes.

    python scripts/bench/gpu.py [PART ...] [--device cuda] [--output gpu.jsonl] [--small] [--leanrl LeanRL/leanrl/...]

Parts (all, if none is named; `--list` prints them), each in a process of its own with a time limit:

- `same_seed`, `distance`, `resume`, `tests`: two trainings with one seed end with the same bits; two epochs on the
  device end near those on the CPU; a run that is killed and resumed ends with the bits of an undisturbed one; the tests
  of tests/orchestrator/learning/test_device.py and collection/test_acting_graphs.py, which say whether minibatches, and
  steps of a policy, that are replayed from a CUDA graph have the bits of those that are not.
- `graphs`: two trainings with `learning.graphs` end with the same bits, near those of one without, and have replayed
  minibatches. Without a GPU, by the stand-in of the tests.
- `acting_graphs`: two trainings whose policy acts on the device, with `collection.graphs` and without, end with the
  same bits, and the first has replayed steps. Without a GPU likewise.
- `cartpole_64`, `cartpole_4096`, `pong_8`, `pong_64`, `memory_64`: agent steps per second, and per epoch the
  milliseconds of collecting, of learning, and of the device's kernels and copies in it. The policy acts on the CPU,
  and nothing is replayed. In all others, minibatches are replayed from CUDA graphs. The policy acts on the device in
  `pong_8_graphs`, `pong_64_graphs` and `memory_64_acting_graphs`, where its steps are replayed, too, and in
  `pong_64_acting` and `memory_64_acting`, where they are not. A number at the end is of collectors.
- `peers_cartpole_64`, `peers_pong_64`: agent steps per second of stable-baselines3 and, where `--leanrl` names its
  script (see leanrl.py), LeanRL.

Each part prints a line of JSON, into `--output` too; a table follows. `--small` is for trying the script where there is
no GPU: little work, on the CPU unless `--device` says otherwise. Horizon 128, 4 minibatches, 4 update epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from gpu_checks import CHECKS, PROJECT
from gpu_workloads import HORIZON, WORKLOADS, Workload, configured, epochs_of, train
from measure import describe_machine

LIMITS = {"tests": 100.0, "graphs": 90.0, "acting_graphs": 90.0, "resume": 90.0}
"""Seconds, of those that train more than twice; the others have `LIMIT`."""
LIMIT = 45.0
_WARM_UP = 4


def figures(workload: Workload, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Medians over epochs, of which one more is profiled at the end, and counts for nothing else."""
    import torch

    epochs = 3 if options.small else workload.epochs
    config = epochs_of(configured(workload, options), _WARM_UP + epochs + 1)
    profiled = _WARM_UP + epochs
    config = replace(
        config,
        run_dir=folder,
        learning=replace(config.learning, profile_epochs=(profiled,)),
        checkpoints=replace(config.checkpoints, enabled=False),
    )
    train(config)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = [one for one in records if _WARM_UP <= one["epoch"] < profiled]
    median = {name: statistics.median(one[f"time/{name}"] for one in timed) for name in ("epoch", "collect", "learn")}
    steps = statistics.median(after["agent_step"] - before["agent_step"] for before, after in pairwise(timed))
    found: dict[str, Any] = {
        "agent_steps_per_second": steps / median["epoch"],
        "collect_ms": 1e3 * median["collect"],
        "learn_ms": 1e3 * median["learn"],
    }
    if workload.graphs:
        found["replayed_minibatches"] = statistics.median(one["loss/replayed_minibatches"] for one in timed)
    if workload.acting_graphs:
        found["replayed_steps"] = statistics.median(one["rollout/replayed_steps"] for one in timed)
    if torch.device(options.device).type == "cuda":
        found |= kernels(folder / f"profile-{profiled}.json")
        found["learn_over_kernels"] = found["learn_ms"] / found["kernels_ms"]
    return found


def kernels(profile: Path) -> dict[str, float]:
    """What the device has done in a profiled epoch of learning."""
    events = json.loads(profile.read_text())["traceEvents"]
    busy = {"kernel": 0.0, "gpu_memcpy": 0.0}
    launches = 0
    for event in events:
        if event.get("cat") in busy:
            busy[event["cat"]] += event["dur"]
            launches += event["cat"] == "kernel"
    return {"kernels_ms": busy["kernel"] / 1e3, "copies_ms": busy["gpu_memcpy"] / 1e3, "launches": launches}


def peers(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Agent steps per second of others on the same work."""
    import pong
    import throughput

    workload = WORKLOADS[name]
    environments = 8 if options.small else workload.environments
    steps = environments * HORIZON
    of_cartpole = name.startswith("cartpole")
    if of_cartpole:
        per_epoch = [steps * one for one in throughput.stable_baselines3(environments, 1, options.device)]
    else:
        per_epoch = pong.stable_baselines3(1, environments, options.device)
    rates: dict[str, Any] = {"stable_baselines3": steps / statistics.median(per_epoch)}
    if options.leanrl is not None:
        if of_cartpole:
            seconds = throughput.leanrl_seconds(options.leanrl, 1, environments)
        else:
            seconds = pong.leanrl_seconds(options.leanrl, 1, environments, workload.environment)
        rates["leanrl"] = steps / statistics.median(seconds)
    return rates


PARTS = (*CHECKS, "peers_cartpole_64", "peers_pong_64", *WORKLOADS)


def run_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        if part in CHECKS:
            return CHECKS[part](options, folder)
        if part.startswith("peers_"):
            return peers(part.removeprefix("peers_"), options)
        return figures(WORKLOADS[part], options, folder)


def in_own_process(part: str, words: list[str], limit: float) -> dict[str, Any]:
    """A part's result; what went wrong, and where, if it has none."""
    if limit <= 0:
        return {"error": "no time was left: see --minutes"}
    command = [sys.executable, __file__, "--one", part, *words]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])},
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return {"error": f"took more than {limit:.3g} s"}
    if process.returncode:
        return {"error": " ".join(errors.split()[-60:]) or f"exit code {process.returncode}"}
    return json.loads(output.strip().splitlines()[-1])


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'part':20}  result"]
    for part, result in results.items():
        shown = (
            f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in result.items()
        )
        lines.append(f"{part:20}  {', '.join(shown)}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--device", help="default: cuda, and with --small cpu")
    parser.add_argument("--minutes", type=float, default=6.0, help="for all parts together (default: %(default)g)")
    parser.add_argument("--output", type=Path, help="file of JSON lines to add the results to")
    parser.add_argument("--small", action="store_true", help="little work, to try this script")
    parser.add_argument("--leanrl", type=Path, help="its script, see leanrl.py")
    parser.add_argument("--list", action="store_true", help="print the parts")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = options.device or ("cpu" if options.small else "cuda")
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.list:
        print("\n".join(PARTS))
        return 0
    if options.one:
        print(json.dumps(run_part(options.parts[0], options)))
        return 0
    print(describe_machine(), f"device {options.device}", sep=", ", flush=True)
    words = ["--device", options.device, *(["--small"] if options.small else [])]
    words += [] if options.leanrl is None else ["--leanrl", str(options.leanrl)]
    results: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + 60.0 * options.minutes
    for part in options.parts or PARTS:
        began = time.monotonic()
        # There is no hurry on a machine that may be slow.
        limit = end - began if options.small else min(LIMITS.get(part, LIMIT), end - began)
        results[part] = in_own_process(part, words, limit)
        line = json.dumps({"part": part, "device": options.device, "seconds": time.monotonic() - began} | results[part])
        print(line, flush=True)
        if options.output is not None:
            with options.output.open("a") as output:
                output.write(line + "\n")
    print(table(results))
    return int(any("error" in result or result.get("passed") is False for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
