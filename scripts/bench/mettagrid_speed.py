"""Agent steps per second of MettaGrid's arena with 24 agents: its simulators alone, in this project, through its
PettingZoo and PufferLib forms, collected with the network `tokens` by this project and over the PufferLib form (which
only acts and steps, and records nothing), and the whole training loop; all on the same cores, in turn.

    python scripts/bench/mettagrid_speed.py [--repeats 3] [--games 8] [--steps 300] [--only 0 1]
    python scripts/bench/mettagrid_speed.py --processor-time 20

Needs the `mettagrid` extra. The PufferLib form needs the package pufferlib-core (`pip install --no-deps`, since it
wants another torch); without it, it is left out.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import arguments, describe_machine, epoch_seconds, in_subprocess, spread

if TYPE_CHECKING:
    from collections.abc import Callable

AGENTS, HORIZON, EPOCHS = 24, 32, 4
OPTIONS = {"num_agents": AGENTS, "max_steps": 10_000}


def arena() -> Any:
    from orchestrator.environments.mettagrid import find_game

    return find_game("arena")(**OPTIONS)


def random_actions(games: int) -> Any:
    return np.random.default_rng(0).integers(0, 5, (64, games * AGENTS)).astype(np.int32)


def rate(step: Callable[[Any], object], games: int, steps: int) -> float:
    """Agent steps per second of `step`, which takes actions `[games * agents]`."""
    actions = random_actions(games)
    for index in range(20):
        step(actions[index])
    began = time.perf_counter()
    for index in range(steps):
        step(actions[index % 64])
    return games * AGENTS * steps / (time.perf_counter() - began)


def simulators(games: int, steps: int) -> float:
    return rate(stepping_alone(games), games, steps)


def stepping_alone(games: int, in_cpp: bool = False) -> Callable[[Any], None]:
    """Steps MettaGrid's simulators as its own forms do, or only what of them is in C++."""
    from mettagrid.simulator import Simulation

    alone: list[Any] = [Simulation(arena(), seed=seed) for seed in range(games)]
    steps = [simulation._c_sim.step if in_cpp else simulation.step for simulation in alone]

    def step(actions: Any) -> None:
        for index, simulation in enumerate(alone):
            simulation._c_sim.actions()[:] = actions[index * AGENTS : (index + 1) * AGENTS]
            steps[index]()

    return step


def ours(games: int, steps: int) -> float:
    from orchestrator.environments import make_vector

    environment = make_vector("mettagrid/arena", games, OPTIONS)
    environment.reset(1)
    return rate(environment.step, games, steps)


def pettingzoo(games: int, steps: int) -> float:
    """MettaGrid's own ParallelEnv, whose dicts are put into arrays, as a batch for a policy."""
    from mettagrid.envs.pettingzoo_env import MettaGridPettingZooEnv
    from mettagrid.simulator import Simulator

    environments = [MettaGridPettingZooEnv(Simulator(), arena()) for _ in range(games)]
    observations = np.zeros((games * AGENTS, 500, 3), np.uint8)
    for environment in environments:
        environment.reset(seed=1)

    def step(actions: Any) -> None:
        for index, environment in enumerate(environments):
            first = index * AGENTS
            result = environment.step({agent: actions[first + agent] for agent in range(AGENTS)})
            for agent, observation in result[0].items():
                observations[first + agent] = observation

    return rate(step, games, steps)


def puffer_vector(games: int) -> Any:
    """The PufferLib form of so many games; None where PufferLib is not installed."""
    try:
        from mettagrid.envs.mettagrid_puffer_env import MettaGridPufferEnv
        from pufferlib import vector
    except ImportError:
        return None
    from mettagrid.simulator import Simulator

    def make(buf: Any = None, seed: int = 0) -> Any:
        return MettaGridPufferEnv(Simulator(), arena(), buf=buf, seed=seed)

    environment = vector.make(make, num_envs=games, backend=vector.Serial)
    environment.reset()
    return environment


def pufferlib(games: int, steps: int) -> float | None:
    environment = puffer_vector(games)
    return None if environment is None else rate(environment.step, games, steps)


def acting_over_pufferlib(games: int, steps: int) -> float | None:
    import torch

    step = puffer_acting(games)
    if step is None:
        return None
    with torch.inference_mode():
        return rate(step, games, steps)


def puffer_acting(games: int) -> Callable[[Any], None] | None:
    """The same policy as in `collection`, over the PufferLib form."""
    import torch
    from gymnasium import spaces

    from orchestrator import read_preset
    from orchestrator.policies.acting import ActingPolicy
    from orchestrator.policies.network import Spaces
    from orchestrator.policies.policy import build_policy

    torch.set_num_threads(1)
    environment = puffer_vector(games)
    if environment is None:
        return None
    observed = spaces.Box(0, 255, (500, 3), np.uint8)
    chosen = spaces.Discrete(int(environment.single_action_space.n))
    rows = games * AGENTS
    acting = ActingPolicy(build_policy(read_preset("mettagrid").policy, Spaces(observed, chosen), 0, 0.99).eval(), rows)
    distribution, generator = acting.policy.distribution, torch.Generator()
    start, seen = torch.zeros(rows, dtype=torch.bool), environment.reset()[0]

    def step(_: Any) -> None:
        nonlocal seen
        parameters, _ = acting.act(torch.from_numpy(seen), start)
        actions = distribution.sample(parameters, distribution.noise((rows,), generator))
        seen = environment.step(actions.numpy().astype(np.int32))[0]

    return step


def collection(games: int, steps: int, workers: int = 0) -> float:
    from environment_workers import collected

    return collected("arena", workers, 1, games, steps * games * AGENTS / 20_000)


def training(games: int, steps: int) -> float:
    from orchestrator import CollectionConfig, TrainerConfig, read_preset

    config = TrainerConfig(
        environment="mettagrid/arena",
        total_agent_steps=10**9,
        staleness=1,
        collection=CollectionConfig(num_environments=games, horizon=HORIZON, environment_options=OPTIONS),
        policy=read_preset("mettagrid").policy,
    )
    return games * AGENTS * HORIZON / statistics.median(epoch_seconds(config, EPOCHS))


def processor_time(games: int, rounds: int) -> None:
    """Microseconds of one core for each agent step, in one process that takes turns: what others do on the same machine
    matters less so. The median of the rounds' ratios to the simulators alone."""
    import torch
    from environment_workers import collecting

    torch.set_num_threads(1)
    actions = random_actions(games)
    alone, in_cpp, over_puffer = stepping_alone(games), stepping_alone(games, in_cpp=True), puffer_acting(games)
    with collecting("arena", 0, 1, games) as (collect, steps), torch.inference_mode():
        contenders: dict[str, Callable[[], object]] = {
            "simulators alone": lambda: [alone(actions[index]) for index in range(HORIZON)],
            "what of them is in C++": lambda: [in_cpp(actions[index]) for index in range(HORIZON)],
            "this project's collection": collect,
        }
        if over_puffer is not None:
            contenders["PufferLib form, acting"] = lambda: [over_puffer(None) for _ in range(HORIZON)]
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name, contender in contenders.items():
                began = time.process_time()
                contender()
                if number:  # the first is warm-up
                    taken[name].append(1e6 * (time.process_time() - began) / steps)
    for name, of in taken.items():
        ratio = statistics.median(other / one for one, other in zip(of, taken["simulators alone"], strict=True))
        print(f"{name:34} {spread(of)} us of a core, fastest {min(of):.1f}; {ratio:.2f} x the simulators' speed")


CONTENDERS = {
    "simulators alone": simulators,
    "this project's environment": ours,
    "MettaGrid's PettingZoo form": pettingzoo,
    "MettaGrid's PufferLib form": pufferlib,
    "PufferLib form, acting": acting_over_pufferlib,
    "this project's collection": collection,
    "collection, 1 environment worker": partial(collection, workers=1),
    "collection, 2 environment workers": partial(collection, workers=2),
    "whole training loop, staleness 1": training,
}


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--games", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    numbers = range(len(CONTENDERS))
    parser.add_argument("--only", nargs="+", type=int, choices=numbers, default=numbers, help="contenders by number")
    parser.add_argument("--processor-time", type=int, metavar="ROUNDS", help="instead: in turn in one process")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(CONTENDERS[chosen.one[0]](chosen.games, chosen.steps)))
        return
    print(describe_machine())
    if chosen.processor_time:
        processor_time(chosen.games, chosen.processor_time)
        return
    print(f"arena, {chosen.games} games of {AGENTS} agents, observations uint8 [500, 3]")
    names = [name for number, name in enumerate(CONTENDERS) if number in (0, *chosen.only)]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(chosen.repeats):
        for name in names:
            found = in_subprocess(__file__, "--games", chosen.games, "--steps", chosen.steps, "--one", name)
            rates[name] += [] if found is None else [found]
    alone = statistics.median(rates["simulators alone"])
    for name, values in rates.items():
        if values:
            print(f"{name:34} {spread(values)} steps/s  {statistics.median(values) / alone:.3f} x the simulators alone")
        else:
            print(f"{name:34} left out: pufferlib-core is not installed")


if __name__ == "__main__":
    main()
