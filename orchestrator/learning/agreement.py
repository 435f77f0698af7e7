"""Learners that share each batch have the same weights at every moment, or else they learn something that none of them
is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.paths import PATH
from state.error import OrchestratorError

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.learning.exchange import Exchange
    from state.parameter_arena import ParameterArena

_SHOWN = 5


class CellsDiffer(OrchestratorError, RuntimeError):
    """The policy is not the same in all cells."""


def check_agreement(arena: ParameterArena, exchange: Exchange, network: str, epoch: int) -> None:
    """Compare sums over all tensors, after an `epoch` counted from 0. Raises CellsDiffer, naming those that differ."""
    if exchange.cells == 1:
        return
    sums = exchange.gather(arena.checksums()[None])
    if differing := _differing(arena, (sums == sums[0]).all(dim=0)):
        raise CellsDiffer(
            f"the cells' learners have different values in {differing} of the network {network!r} after epoch"
            f" {epoch + 1}: it, or a loss, changes them by something else than gradients, such as random numbers, which"
            f" is not the same in each cell; learn them as parameters, or set {PATH.cells} to 1"
        )


def check_unchanged(arena: ParameterArena, before: Tensor, network: str) -> None:
    """Compare with the checksums `before` a minibatch was computed in several shards. Raises CellsDiffer, naming
    tensors that the network has changed: they would depend on how many of the shards a cell has."""
    if changed := _differing(arena, arena.checksums() == before):
        raise CellsDiffer(
            f"the network {network!r} changes {changed} while it learns, as BatchNorm and spectral_norm do, which would"
            f" depend on the number of cells; use layers that keep nothing (LayerNorm), or set {PATH.cells} and"
            f" {PATH.learning.shards} to 1"
        )


def _differing(arena: ParameterArena, same: Tensor) -> str:
    names = [spec.name for spec, alike in zip(arena.layout.tensors, same.tolist(), strict=True) if not alike]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
