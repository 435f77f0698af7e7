"""The losses that a configuration asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from losses import LearnerCallback, Loss, ppo_losses, vtrace_losses
from orchestrator.config.error import shown
from orchestrator.config.own_code import OwnCodeError, call_function
from orchestrator.config.plugins import code_named
from state.user_code import user_code

if TYPE_CHECKING:
    from orchestrator.config.settings import TrainerConfig


def default_losses(config: TrainerConfig) -> tuple[LearnerCallback, ...]:
    """The losses named in `config.losses.names`; a function that is named there returns one loss or several, or a
    `LearnerCallback`.

    Raises OwnCodeError when it fails, or returns something else.
    """
    settings = config.losses
    known: dict[str, Loss] = {}
    for loss in (
        *ppo_losses(
            clip=settings.clip,
            entropy_coefficient=settings.entropy_coefficient,
            target_kl=settings.target_kl,
            normalize_advantage=settings.normalize_advantage,
            staleness_clip=settings.staleness_clip,
            value_coefficient=settings.value_coefficient,
            value_clip=settings.value_clip,
        ),
        *vtrace_losses(
            discount=config.learning.discount,
            rho_clip=settings.rho_clip,
            c_clip=settings.c_clip,
            entropy_coefficient=settings.entropy_coefficient,
            value_coefficient=settings.value_coefficient,
        ),
    ):
        known[loss.name] = loss
    losses: list[LearnerCallback] = []
    for name in settings.names:
        losses.extend([known[name]] if name in known else _own(name))
    return tuple(losses)


def _own(name: str) -> list[LearnerCallback]:
    made: Any = call_function(code_named(name, "losses"))
    with user_code(name):  # which may be a generator
        losses = cast("list[object]", list(made) if isinstance(made, Iterable) else [made])
    for loss in losses:
        if not isinstance(loss, LearnerCallback):
            raise OwnCodeError(
                f"{name} returned {shown(loss)}, expected a losses.Loss, or several of them: correct the function"
            )
    return cast("list[LearnerCallback]", losses)
