"""Starting a run from the weights of another one: everything else starts afresh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from safetensors.numpy import load

from orchestrator.checkpoints import CheckpointError, find_checkpoint
from orchestrator.checkpoints.find import as_address, local_place
from orchestrator.checkpoints.manifest import POLICY
from orchestrator.checkpoints.remote import run_and_name
from orchestrator.snapshots.tensors import weight_differences

if TYPE_CHECKING:
    from orchestrator.config.settings import TrainerConfig
    from state.policy_snapshot import PolicyLayout

Weights = Mapping[str, NDArray[Any]]


def with_pinned_weights(config: TrainerConfig, resumed: TrainerConfig | None = None) -> TrainerConfig:
    """The configuration with the one checkpoint that `init_from` means now, so that repeating the run repeats it.

    Blocks: reads, and may download. For a run that is `resumed` nothing is read: its settings say what was meant when
    it began. Raises CheckpointError naming what is missing or damaged.
    """
    where = config.init_from
    if where is None:
        return config
    if resumed is not None:
        within = f"{resumed.init_from}/".startswith(f"{_place(where)}/")
        return replace(config, init_from=resumed.init_from) if within else config
    checkpoint = find_checkpoint(where)
    if not _is_remote(where):
        return replace(config, init_from=str(checkpoint.path.absolute()))
    run, _ = run_and_name(_place(where))
    return replace(config, init_from=f"{run}/checkpoints/{checkpoint.path.name}")


def read_weights(where: str) -> Weights:
    """The policy's parameters and buffers, the statistics of its normalizers among them, of a checkpoint; blocks.

    Only arrays are read: the settings of the run that they are from do not matter, and no code that they name is run.
    Raises CheckpointError.
    """
    return load(find_checkpoint(where).read(POLICY))


def check_weights(layout: PolicyLayout, weights: Weights, where: str) -> None:
    """Raises CheckpointError listing the tensors that differ where a policy of `layout` cannot start from `weights`."""
    own = {spec.name: (spec.shape, spec.dtype) for spec in layout.tensors}
    problems = weight_differences(own, weights)
    if problems:
        raise CheckpointError(
            f"init_from = {where!r} is of another policy: {'; '.join(problems)}. Give the run the settings of [policy]"
            " and the spaces that the weights were learned with (the statistics of normalize_observations and"
            " normalize_rewards are taken along, so they must be as they were)"
        )


def _place(where: str) -> str:
    """A path as an absolute one, without a trailing slash; an address in an object store as it is."""
    return where.rstrip("/") if _is_remote(where) else str(local_place(where).absolute())


def _is_remote(where: str) -> bool:
    address = as_address(where)
    return address is not None and not address.startswith("file://")
