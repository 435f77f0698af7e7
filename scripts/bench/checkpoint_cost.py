"""What checkpoints cost the training: epochs with them, on disk and uploaded to a slow object store, against without.

    python scripts/bench/checkpoint_cost.py [--cases 1M 50M 1M-short 50M-short] [--pairs 8] [--threads 0]

A policy of 1 M parameters is saved after every epoch, one of 50 M after every tenth; otherwise the settings are the
defaults, but for 8 environments with the large one, so that it can be waited for. In the "short" cases epochs are as
short, and so checkpoints as dense, as they get: 50 MB for each second of training. The store (slow_store.py), in a
process of its own, takes 500 ms for each request. Machines drift more within a minute than what is measured, so blocks
of epochs with and without checkpoints take turns in one training; between them nothing is timed until the last
checkpoint is committed and its upload ended. Beside it the memory of the host at its most (its own pages and those it
shares), and what the learner spends on handing over its state.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from measure import WARM_UP, arguments, describe_machine, in_subprocess, spread, standard_error, verdict

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from orchestrator import TrainerConfig
    from orchestrator.run import Run

GOAL = 1.03
REQUEST_SECONDS = 0.5
BUCKET = "checkpoints"
HOOKS = ("checkpoint", "upload")


class Case(NamedTuple):
    hidden: int
    every: int
    """Epochs between checkpoints."""
    block: int
    """Epochs that are timed together."""
    collection: Mapping[str, Any]
    learning: Mapping[str, Any]


FEW = {"update_epochs": 2, "minibatches": 2}
CASES = {
    "1M": Case(700, 1, 4, {}, {}),
    "50M": Case(5000, 10, 10, {"num_environments": 8}, {}),
    "1M-short": Case(700, 1, 30, {"num_environments": 16}, FEW),
    "50M-short": Case(5000, 10, 10, {"num_environments": 8, "horizon": 16}, FEW),
}


def configured(case: Case, folder: Path, threads: int | None, uri: str) -> TrainerConfig:
    from orchestrator import CheckpointsConfig, CollectionConfig, LearningConfig, PolicyConfig, TrainerConfig

    return TrainerConfig(
        total_agent_steps=10**9,
        run_dir=folder,
        collection=CollectionConfig(**case.collection),
        learning=LearningConfig(learning_rate=1e-5, threads=threads, **case.learning),  # whatever it learns
        policy=PolicyConfig(hidden_sizes=(case.hidden, case.hidden)),
        checkpoints=CheckpointsConfig(every=0, upload=uri or None),  # when they are asked for, and at the end
    )


def training(name: str, pairs: str, threads: str, uri: str = "") -> dict[str, Any]:
    """Train with checkpoints in every other block; with an upload of each if `uri` is not empty."""
    import anyio

    from orchestrator import Trainer

    case = CASES[name]
    shares: list[float] = []
    seconds: list[float] = []
    memory = PeakMemory()

    async def main(folder: Path) -> None:
        async with Trainer(configured(case, folder, int(threads) or None, uri)).start() as run:
            run.limit_drain(30.0)
            states = run.states()

            async def epochs(count: int, every: int = 0) -> float:
                """Mean seconds of `count` epochs, with a checkpoint of every so many."""
                begin, first = time.perf_counter(), run.state.epoch
                while run.state.epoch < first + count:
                    if every and (run.state.epoch - first) % every == 0:
                        run.request_checkpoint()
                    await anext(states)
                return (time.perf_counter() - begin) / (run.state.epoch - first)

            await epochs(WARM_UP)
            for pair in range(int(pairs)):
                without = await epochs(case.block)
                if pair == 0:
                    memory.without = memory.peak
                if case.every == 1:
                    await epochs(2, every=1)  # a request is met an epoch or two later
                with_checkpoints = await epochs(case.block, case.every)
                while not idle(run):
                    await anext(states)
                shares.append(with_checkpoints / without)
                seconds.append(without)
            run.stop()

    with tempfile.TemporaryDirectory() as folder, memory:
        anyio.run(main, Path(folder) / "run")
    return {"ratios": shares, "without": seconds, "memory": (memory.without, memory.peak)}


def idle(run: Run) -> bool:
    """Whether no checkpoint is on its way any more."""
    hooks = run.hook_statistics()
    return all(
        one.delivered == one.handled + one.failed + one.coalesced for name, one in hooks.items() if name in HOOKS
    )


class PeakMemory:
    """Watches the resident memory of this process while it is entered."""

    def __init__(self) -> None:
        self.peak = self.without = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        process = psutil.Process()
        while not self._over.wait(0.02):
            self.peak = max(self.peak, process.memory_info().rss)


def capture_cost() -> float:
    """Milliseconds per 100 MB of optimizer moments, in the learner."""
    import numpy as np
    import torch
    from torch import nn

    from losses import LossSet, ppo_losses
    from orchestrator.learning.learner_state import LearnerMemory
    from orchestrator.learning.learning_rate import LearningRate
    from orchestrator.learning.optimization import Optimization
    from state.parameter_arena import ParameterArena
    from state.shared_memory import SharedBuffer

    class Policy(nn.Linear):
        reward_normalizer = None

    torch.set_num_threads(1)
    policy: Any = Policy(5000, 2500)
    arena = ParameterArena(policy)
    optimization = Optimization(
        arena,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_minibatches=4,
        losses=1,
    )
    optimization.begin_epoch(1e-3)
    optimization.backward(policy.weight.square().mean(), torch.zeros(1), 1.0)
    optimization.step()
    rate = LearningRate(1e-3, "constant", target=0.01)
    losses = LossSet(ppo_losses())
    learner = LearnerMemory(policy, losses, optimization, rate, arena.layout, torch.Generator(), own_process=True)
    nbytes = optimization.moments_nbytes
    memory = torch.from_numpy(np.frombuffer(SharedBuffer.create(nbytes).map_shared(), np.uint8, count=nbytes))
    seconds: list[float] = []
    for _ in range(9):
        began = time.perf_counter()
        learner.write(memory)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds) * 1e8 / nbytes


@contextmanager
def slow_store() -> Generator[None]:
    command = [sys.executable, str(Path(__file__).with_name("slow_store.py")), str(REQUEST_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            os.environ |= {
                "AWS_ENDPOINT_URL": server.stdout.readline().strip(),
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "benchmark",
                "AWS_SECRET_ACCESS_KEY": "benchmark",
            }
            yield
        finally:
            server.kill()


def main() -> None:
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=["1M", "50M"])
    parser.add_argument("--where", nargs="+", choices=["disk", "store"], default=["disk", "store"])
    parser.add_argument("--pairs", type=int, default=8, help="blocks of each kind (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of the learner (0: as it chooses)")
    options = parser.parse_args()
    if options.one:
        what, *rest = options.one
        print(json.dumps({"capture": capture_cost, "training": training}[what](*rest)))
        return
    print(f"# {describe_machine()}", flush=True)
    cost = in_subprocess(__file__, "--one", "capture")
    print(f"taking the state within the loop: {cost:.1f} ms per 100 MB of moments", flush=True)
    with slow_store():
        for case, where in product(options.cases, options.where):
            uri = [f"s3://{BUCKET}/{case}"] if where == "store" else []
            one = in_subprocess(__file__, "--one", "training", case, options.pairs, options.threads, *uri)
            ratios = one["ratios"]
            milliseconds = [1e3 * seconds for seconds in one["without"]]
            without, peak = (value / 1e6 for value in one["memory"])
            print(
                f"{case}, {'uploaded' if uri else 'on disk'}: epochs of {spread(milliseconds)} ms, "
                f"with checkpoints times {spread(ratios)}, standard error {standard_error(ratios):.3f}, "
                f"{len(ratios)} pairs of blocks, {verdict(statistics.median(ratios), GOAL)}; "
                f"host's memory at most {without:.0f} MB without, {peak:.0f} MB with",
                flush=True,
            )


if __name__ == "__main__":
    main()
