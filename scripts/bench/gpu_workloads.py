"""What gpu.py trains on, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from orchestrator import TrainerConfig

HORIZON, MINIBATCHES, UPDATE_EPOCHS = 128, 4, 4


@dataclass(frozen=True)
class Workload:
    """Something to train on."""

    environment: str
    environments: int
    collectors: int
    groups: int = 1
    """Of each collector's environments."""
    network: str = "auto"
    acting: bool = False
    """Whether the policy acts on the device; otherwise on the CPU."""
    graphs: bool = False
    """`learning.graphs`."""
    acting_graphs: bool = False
    """`collection.graphs`."""
    epochs: int = 10
    """To be timed."""


_CARTPOLE, _PONG, _MEMORY = "CartPole-v1", "ale_py:ALE/Pong-v5", "orchestrator.environments.memory:make"
_RECORDED: Any = {"acting": True, "graphs": True, "acting_graphs": True}

WORKLOADS = {
    "cartpole_64": Workload(_CARTPOLE, 64, 1, epochs=40),
    "cartpole_4096": Workload(_CARTPOLE, 4096, 8, epochs=20),
    "pong_8": Workload(_PONG, 8, 1),
    "pong_64": Workload(_PONG, 64, 8),
    "memory_64": Workload(_MEMORY, 64, 1, network="lstm"),
    "cartpole_64_graphs": Workload(_CARTPOLE, 64, 1, graphs=True, epochs=40),
    "cartpole_4096_graphs": Workload(_CARTPOLE, 4096, 8, graphs=True, epochs=20),
    "cartpole_4096_graphs_16": Workload(_CARTPOLE, 4096, 16, graphs=True, epochs=20),
    "pong_8_graphs": Workload(_PONG, 8, 1, **_RECORDED),
    "pong_64_graphs": Workload(_PONG, 64, 2, groups=2, **_RECORDED),
    "pong_64_graphs_1": Workload(_PONG, 64, 1, groups=2, **_RECORDED),
    "pong_64_graphs_4": Workload(_PONG, 64, 4, **_RECORDED),
    "pong_64_acting": Workload(_PONG, 64, 2, groups=2, acting=True, graphs=True),
    "memory_64_graphs": Workload(_MEMORY, 64, 1, network="lstm", graphs=True),
    "memory_64_acting": Workload(_MEMORY, 64, 1, network="lstm", acting=True, graphs=True),
    "memory_64_acting_graphs": Workload(_MEMORY, 64, 1, network="lstm", **_RECORDED),
}
_STAND_IN = "tests.orchestrator.recorded_graph:recorded_mlp"


def configured(workload: Workload, options: argparse.Namespace) -> TrainerConfig:
    from orchestrator import CollectionConfig, LearningConfig, PolicyConfig, TrainerConfig

    environments, collectors = workload.environments, workload.collectors
    if options.small:
        environments, collectors = min(environments, 8), 1
    network = workload.network
    if (workload.graphs or workload.acting_graphs) and options.device == "cpu":
        network = _STAND_IN
    return TrainerConfig(
        environment=workload.environment,
        device=options.device,
        total_agent_steps=environments * HORIZON * 100_000,
        collection=CollectionConfig(
            num_environments=environments,
            collectors=collectors,
            horizon=HORIZON,
            environment_groups=workload.groups,
            device=options.device if workload.acting else "cpu",
            graphs=workload.acting_graphs,
        ),
        learning=LearningConfig(
            update_epochs=UPDATE_EPOCHS, minibatches=MINIBATCHES, learning_rate=3e-4, graphs=workload.graphs
        ),
        policy=PolicyConfig(network=network),
    )


def epochs_of(config: TrainerConfig, epochs: int) -> TrainerConfig:
    """The same, to end after `epochs` epochs."""
    steps = config.collection.num_environments * HORIZON
    # Less than all steps of an epoch are the agent's: those that only reset a copy are not.
    return replace(config, total_agent_steps=max(1, int(steps * (epochs - 0.5))))


def train(config: TrainerConfig) -> None:
    import anyio

    from orchestrator import Trainer

    anyio.run(Trainer(config).run)


def final_weights(folder: Path) -> bytes:
    """Of the newest checkpoint."""
    return (max((folder / "checkpoints").glob("[0-9]*")) / "policy.safetensors").read_bytes()
