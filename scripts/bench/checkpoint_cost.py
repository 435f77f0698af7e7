"""What checkpoints cost the training: epoch time with them, uploaded to a slow object store, against without.

    python scripts/bench/checkpoint_cost.py [--repeats 5] [--policies 1M 50M]

The policy of 1 M parameters is saved after every epoch, that of 50 M after every tenth. The store is a real S3 server
on loopback, in a process of its own, that takes 500 ms for each request. Both sides in turn, in processes of their own;
the mean over all epochs counts, since a few of them carry the cost. Beside it the memory of the host at its most
(its own pages and those it shares), and what the learner spends on handing over its state.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import arguments, describe_machine, epoch_seconds, in_subprocess, spread, verdict

if TYPE_CHECKING:
    from collections.abc import Generator

GOAL = 1.03
REQUEST_SECONDS = 0.5
BUCKET = "checkpoints"
# hidden units, environments, horizon, epochs between checkpoints, epochs measured
POLICIES = {"1M": (700, 16, 128, 1, 30), "50M": (5000, 8, 16, 10, 10)}


def train(policy: str, uri: str) -> dict[str, Any]:
    """Train, with checkpoints if `uri` is not empty."""
    import psutil

    from orchestrator import CheckpointsConfig, CollectionConfig, LearningConfig, PolicyConfig, TrainerConfig

    hidden, environments, horizon, every, epochs = POLICIES[policy]
    peak = 0
    stopped = threading.Event()

    def watch() -> None:
        nonlocal peak
        process = psutil.Process()
        while not stopped.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainerConfig(
            total_agent_steps=10**9,
            run_dir=Path(folder) / "run",
            collection=CollectionConfig(environments=environments, horizon=horizon),
            learning=LearningConfig(update_epochs=2, minibatches=2),
            policy=PolicyConfig(hidden=(hidden, hidden)),
            checkpoints=CheckpointsConfig(enabled=bool(uri), every=every, upload=uri or None),
        )
        # The final checkpoint must be written, or the run is no success; its copy is given up.
        seconds = epoch_seconds(config, epochs, warm_up=every, drain=30.0 if uri else 0.1)
        written = len(list((Path(folder) / "run" / "checkpoints").glob("0*")))
    stopped.set()
    watcher.join()
    return {"epoch": statistics.mean(seconds), "peak_rss": peak, "checkpoints_left": written}


def capture_cost() -> float:
    """Milliseconds per 100 MB of optimizer moments, in the learner."""
    import numpy as np
    import torch
    from torch import nn

    from losses import LossSet, ppo_losses
    from orchestrator.learner_state import LearnerMemory
    from orchestrator.optimization import Optimization
    from state.parameter_arena import ParameterArena
    from state.shared_memory import SharedBuffer

    class Policy(nn.Linear):
        reward_normalizer = None

    torch.set_num_threads(1)
    policy: Any = Policy(5000, 2500)
    arena = ParameterArena(policy)
    optimization = Optimization(
        arena,
        learning_rate=1e-3,
        schedule="constant",
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_minibatches=4,
        losses=1,
    )
    optimization.begin_epoch(0)
    optimization.backward(policy.weight.square().mean(), torch.zeros(1), 1.0)
    optimization.step()
    learner = LearnerMemory(policy, LossSet(ppo_losses()), optimization, torch.Generator(), own_process=True)
    nbytes = optimization.moments_nbytes
    memory = torch.from_numpy(np.frombuffer(SharedBuffer.create(nbytes).map_shared(), np.uint8, count=nbytes))
    seconds: list[float] = []
    for _ in range(9):
        began = time.perf_counter()
        learner.write(memory)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds) * 1e8 / nbytes


def serve() -> None:
    """The slow store; tells its port, and serves until it is killed."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    slow = False

    def answer(environment: Any, start_response: Any) -> Any:
        if slow:
            time.sleep(REQUEST_SECONDS)
        return application(environment, start_response)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import urllib.request

    endpoint = f"http://127.0.0.1:{server.port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
    slow = True
    print(endpoint, flush=True)
    threading.Event().wait()


@contextmanager
def slow_store() -> Generator[None]:
    command = [sys.executable, __file__, "--one", "serve"]
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
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--policies", nargs="+", choices=[*POLICIES], default=[*POLICIES])
    options = parser.parse_args()
    if options.one:
        match options.one:
            case ["serve"]:
                serve()
            case ["capture"]:
                print(json.dumps(capture_cost()))
            case [policy, *uri]:
                print(json.dumps(train(policy, "".join(uri))))
        return
    print(f"# {describe_machine()}", flush=True)
    cost = in_subprocess(__file__, "--one", "capture")
    print(f"taking the state within the loop: {cost:.1f} ms per 100 MB of moments")
    with slow_store():
        for policy in options.policies:
            sides: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
            for repeat in range(options.repeats):
                sides["without"].append(in_subprocess(__file__, "--one", policy))
                uri = f"s3://{BUCKET}/{policy}-{repeat}"
                sides["with"].append(in_subprocess(__file__, "--one", policy, uri))
            ratios = [one["epoch"] / other["epoch"] for one, other in zip(sides["with"], sides["without"], strict=True)]
            milliseconds = {name: [1e3 * side["epoch"] for side in values] for name, values in sides.items()}
            memory = {name: max(side["peak_rss"] for side in values) / 1e6 for name, values in sides.items()}
            print(
                f"{policy}: epoch {spread(milliseconds['without'])} ms without checkpoints, "
                f"{spread(milliseconds['with'])} ms with; ratio {spread(ratios)}, "
                f"{verdict(statistics.median(ratios), GOAL)}; "
                f"host's memory at most {memory['without']:.0f} MB without, {memory['with']:.0f} MB with",
                flush=True,
            )


if __name__ == "__main__":
    main()
