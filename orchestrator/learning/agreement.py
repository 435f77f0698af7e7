"""Learners that share each batch have the same weights at every moment, or else they learn something that none of them
is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.paths import PATH
from state.error import OrchestratorError

if TYPE_CHECKING:
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
    differing = [
        spec.name
        for spec, same in zip(arena.layout.tensors, (sums == sums[0]).all(dim=0).tolist(), strict=True)
        if not same
    ]
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise CellsDiffer(
            f"the cells' learners have different values in {', '.join(differing[:_SHOWN])}{more} of the network"
            f" {network!r} after epoch {epoch + 1}: it, or a loss, changes them by something else than gradients, such"
            " as what it has seen or random numbers, which is not the same in each cell; learn them as parameters, or"
            f" set {PATH.cells} to 1"
        )
