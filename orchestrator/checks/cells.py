"""Checks of how a run is shared among cells, and of where these are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.checks.multiples import multiples
from orchestrator.config.paths import PATH, problem_with
from orchestrator.config.reads import reads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.error import Problem
    from orchestrator.config.settings import TrainerConfig


@reads(PATH.cells, PATH.learning.shards, PATH.collection.num_environments)
def share_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Shards, cells and environments that do not go into each other."""
    cells, environments = config.cells, config.collection.num_environments
    shards = config.learning.shards or cells
    if shards % cells:
        yield problem_with(
            config,
            PATH.cells,
            expected=f"a divisor of {PATH.learning.shards} = {shards}, of which each cell has equally many",
            cure=f"set it to {shards & -shards}, or begin a new run with another number of shards",
        )
    elif environments % shards:
        name = PATH.cells if shards == cells else PATH.learning.shards
        yield problem_with(
            config,
            name,
            expected=f"a divisor of {PATH.collection.num_environments} = {environments}, shared equally",
            cure=f"set it to {environments & -environments}, or {PATH.collection.num_environments} to"
            f" {multiples(environments, shards)}",
        )


@reads(PATH.cluster, PATH.cells, PATH.collection.collectors, PATH.collection.backend)
def cluster_problems(config: TrainerConfig) -> Iterator[Problem]:
    """What a run on several machines needs: Ray, a cell for each, collectors for each, and processes."""
    if config.cluster is None:
        return
    from orchestrator.metrics.sink import MissingExtra, require

    cells, collectors = config.cells, config.collection.collectors
    try:
        require("ray", "cluster")
    except MissingExtra as missing:
        expected = "nothing: ray is not installed"
        yield problem_with(config, PATH.cluster, expected=expected, cure=str(missing).partition(": ")[2])
    if cells == 1:
        yield problem_with(
            config,
            PATH.cluster,
            expected=f"nothing while {PATH.cells} is 1: that cell is on this machine",
            cure=f"set {PATH.cells} to the number of machines, or leave {PATH.cluster} out (where a resumed run or a"
            f" file has it, --{PATH.cluster} None)",
        )
    elif collectors % cells:
        yield problem_with(
            config,
            PATH.collection.collectors,
            expected=f"a multiple of {PATH.cells} = {cells}: what a cell learns from is collected on its machine",
            cure=f"set it to {multiples(collectors, cells)}",
        )
    if config.collection.backend != "process":
        yield problem_with(
            config,
            PATH.collection.backend,
            expected=f"'process' with {PATH.cluster}: threads of this program are on this machine",
            cure=f"leave it out, or {PATH.cluster}",
        )
