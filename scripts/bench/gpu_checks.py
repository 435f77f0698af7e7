"""Checks of gpu.py: that training on a device is right. Each returns whether it has `passed`, and what it has seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_workloads import WORKLOADS, configured, epochs_of, final_weights, train

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

PROJECT = Path(__file__).resolve().parents[2]
NEAR = 0.05
"""What rounding on another device may change, as a share of how far an epoch moves the weights."""


def same_seed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = epochs_of(configured(WORKLOADS["cartpole_64"], options), 5)
    weights: list[bytes] = []
    for name in ("first", "second"):
        train(replace(config, run_dir=folder / name))
        weights.append(final_weights(folder / name))
    return {"passed": weights[0] == weights[1]}


def distance(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Of the weights after two epochs, which one policy has collected, each in one minibatch: generators draw other
    orders on other devices."""
    config = epochs_of(configured(WORKLOADS["cartpole_64"], options), 2)
    one_minibatch = replace(config.learning, minibatches=1)
    for name, device, rate in (("device", options.device, 3e-4), ("cpu", "cpu", 3e-4), ("before", "cpu", 1e-30)):
        learning = replace(one_minibatch, learning_rate=rate, learning_rate_schedule="constant")
        train(replace(config, device=device, learning=learning, run_dir=folder / name))
    return near(folder / "device", folder / "cpu", folder / "before")


def near(found: Path, expected: Path, before: Path) -> dict[str, Any]:
    """Whether a run has ended near another one, compared with how far that has come from the weights `before`."""
    import torch
    from safetensors.torch import load

    weights: list[torch.Tensor] = []
    for folder in (found, expected, before):
        tensors = load(final_weights(folder))
        weights.append(torch.cat([tensors[key].flatten() for key in sorted(tensors) if "normalizer" not in key]))
    moved = float((weights[1] - weights[2]).norm())
    share = float((weights[0] - weights[1]).norm()) / moved
    return {"passed": share <= NEAR, "distance": share, "allowed": NEAR}


def graphs(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = epochs_of(configured(WORKLOADS["cartpole_64_graphs"], options), 3)
    steady = replace(config.learning, learning_rate_schedule="constant")
    for name, changed in (
        ("first", {}),
        ("second", {}),
        ("without", {"graphs": False}),
        ("before", {"graphs": False, "learning_rate": 1e-30}),
    ):
        train(replace(config, learning=replace(steady, **changed), run_dir=folder / name))
    found = near(folder / "first", folder / "without", folder / "before")
    last = json.loads((folder / "first" / "metrics.jsonl").read_text().splitlines()[-1])
    found["replayed_minibatches"] = last["loss/replayed_minibatches"]
    found["same_seed"] = final_weights(folder / "first") == final_weights(folder / "second")
    found["passed"] = found["passed"] and found["same_seed"] and found["replayed_minibatches"] > 0
    return found


def acting_graphs(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = epochs_of(configured(WORKLOADS["memory_64_acting_graphs"], options), 3)
    for name, recorded in (("with", True), ("without", False)):
        collection = replace(config.collection, graphs=recorded)
        train(replace(config, collection=collection, run_dir=folder / name))
    last = json.loads((folder / "with" / "metrics.jsonl").read_text().splitlines()[-1])
    same = final_weights(folder / "with") == final_weights(folder / "without")
    replayed = last["rollout/replayed_steps"]
    return {"passed": same and replayed > 0, "replayed_steps": replayed}


def resume(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = configured(WORKLOADS["cartpole_64"], options)
    last = epochs_of(config, 8 if options.small else 30)
    words = [
        sys.executable,
        "-m",
        "orchestrator",
        "train",
        "--environment",
        config.environment,
        "--device",
        config.device,
    ]
    words += ["--collection.num-environments", str(config.collection.num_environments)]
    words += ["--checkpoints.every", "2", "--total-agent-steps", str(last.total_agent_steps)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}

    def started(*more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*words, *more], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def ended(run: subprocess.Popen[bytes]) -> None:
        errors = run.communicate()[1]
        if run.returncode:
            raise RuntimeError(errors.decode())

    ended(started("--run-dir", str(folder / "undisturbed")))
    killed = started("--run-dir", str(folder / "killed"))
    while killed.poll() is None and not list((folder / "killed" / "checkpoints").glob("[0-9]*")):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = sorted(path.name for path in (folder / "killed" / "checkpoints").glob("[0-9]*"))
    words[4:] = ["--resume", str(folder / "killed")]
    ended(started())
    return {
        "passed": final_weights(folder / "killed") == final_weights(folder / "undisturbed"),
        "resumed_from": kept[-1],
    }


def tests(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    files = ("learning/test_device.py", "collection/test_acting_graphs.py")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/orchestrator/{file}" for file in files)]
    only = ["-k", "cuda" if options.device.startswith("cuda") else "not cuda"]
    result = subprocess.run([sys.executable, *words, *only], cwd=PROJECT, capture_output=True, text=True, check=False)
    return {"passed": result.returncode == 0, "said": result.stdout.strip().splitlines()[-1]}


CHECKS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "same_seed": same_seed,
    "distance": distance,
    "resume": resume,
    "tests": tests,
    "graphs": graphs,
    "acting_graphs": acting_graphs,
}
