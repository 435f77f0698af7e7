"""The hyperbolic tangent as networks compute it on a CPU against torch's, and the MLP against the same of `nn.Linear`
and `nn.Tanh`, forward and backward.

    python scripts/bench/networks.py [--rows 64 256 2048 16384] [--repeats 200]

One thread. `rows` are those of a batch: the environments of a collector, the steps of a minibatch.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import arguments, describe_machine

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, OBSERVATION = 64, 4


def compare(name: str, repeats: int, torchs: Callable[[], Any], ours: Callable[[], Any]) -> None:
    """Both in turn; medians in microseconds."""
    seconds: dict[Callable[[], Any], list[float]] = {torchs: [], ours: []}
    for _ in range(5 + repeats):
        for function, times in seconds.items():
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
    theirs, own = (1e6 * statistics.median(times[5:]) for times in seconds.values())
    print(f"  {name:28} torch {theirs:9.1f} us   ours {own:9.1f} us   {own / theirs:.2f}", flush=True)


def main() -> None:
    import gymnasium
    import torch
    from torch import nn

    from orchestrator.policies import Spaces
    from orchestrator.policies.activations import tanh
    from orchestrator.policies.mlp import MLP

    parser = arguments(__doc__, repeats=200)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256, 2048, 16384])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{describe_machine()}, torch {torch.__version__}, {capability}")

    def linear_network(outputs: int) -> nn.Module:
        layers = [nn.Linear(OBSERVATION, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(WIDTH, outputs))

    box = gymnasium.spaces.Box(-1.0, 1.0, (OBSERVATION,))
    network = MLP(Spaces(box, gymnasium.spaces.Discrete(2)))
    actor, critic = linear_network(2), linear_network(1)
    for rows in chosen.rows:
        print(f"{rows} rows")
        hidden, observation = torch.randn(rows, WIDTH), torch.randn(rows, OBSERVATION)
        with torch.inference_mode():
            compare("tanh", chosen.repeats, lambda x=hidden: torch.tanh_(x.clone()), lambda x=hidden: tanh(x.clone()))
            compare(
                "actor forward",
                chosen.repeats,
                lambda x=observation: actor(x),
                lambda x=observation: network.action_parameters(x),
            )

        def torchs(x: torch.Tensor = observation) -> None:
            (actor(x).sum() + critic(x).sum()).backward()

        def ours(x: torch.Tensor = observation) -> None:
            parameters, value = network(x)
            (parameters.sum() + value.sum()).backward()

        compare("actor and critic, backward", chosen.repeats, torchs, ours)


if __name__ == "__main__":
    main()
