"""The losses that a configuration asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from losses import LearnerCallback, Loss, ppo_losses, vtrace_losses
from orchestrator.config.error import ConfigurationError, Problem, shown
from orchestrator.config.own_code import OwnCodeError, call_function
from orchestrator.config.paths import PATH
from orchestrator.config.plugins import code_named
from orchestrator.config.settings import TypePolicy
from orchestrator.environments.joint_spaces import OTHERS
from state.user_code import user_code

if TYPE_CHECKING:
    from orchestrator.config.settings import TrainerConfig


def default_losses(config: TrainerConfig) -> tuple[LearnerCallback, ...]:
    """The losses named in `config.losses.names`, one for each policy where types of agents have their own; a function
    that is named there returns one loss or several, or a `LearnerCallback`.

    Raises OwnCodeError when it fails, or returns something else.
    """
    of_policies: list[dict[str, Loss]] = []
    types = config.policy.by_type or (TypePolicy(),)
    if config.policy.by_type and OTHERS not in {policy.type for policy in types}:
        types = (*types, TypePolicy(type=OTHERS))
    for policy in types:
        known = _known(config, policy)
        if config.policy.by_type:
            known = {name: loss.for_policy(policy.type) for name, loss in known.items()}
        of_policies.append(known)
    losses: list[LearnerCallback] = []
    for name in config.losses.names:
        losses.extend([known[name] for known in of_policies] if name in of_policies[0] else _own(name))
    return tuple(losses)


def losses_of(members: Sequence[LearnerCallback], policies: Sequence[str]) -> tuple[LearnerCallback, ...]:
    """Those of `members` that a run with these `policies` (none: all agents have one) has agents for.

    Raises ConfigurationError for a loss of a policy that there is not.
    """
    kept: list[LearnerCallback] = []
    for member in members:
        policy = member.of_policy if isinstance(member, Loss) else None
        if policy is None or policy in policies:
            kept.append(member)
        elif not policies or policy != OTHERS:
            named = f"a loss of one of the policies {', '.join(policies)}" if policies else "a loss of all agents"
            cure = f"name it in for_policy(), or its type in {PATH.policy.by_type}"
            raise ConfigurationError([Problem(field="losses", value=member.name, expected=named, cure=cure)])
    return tuple(kept)


def _known(config: TrainerConfig, policy: TypePolicy) -> dict[str, Loss]:
    """The losses that have names of ours, with the coefficients of a policy."""
    settings = config.losses
    own_entropy, own_value = policy.entropy_coefficient, policy.value_coefficient
    entropy = settings.entropy_coefficient if own_entropy is None else own_entropy
    value = settings.value_coefficient if own_value is None else own_value
    losses = (
        *ppo_losses(
            clip=settings.clip,
            entropy_coefficient=entropy,
            target_kl=settings.target_kl,
            normalize_advantage=settings.normalize_advantage,
            staleness_clip=settings.staleness_clip,
            value_coefficient=value,
            value_clip=settings.value_clip,
        ),
        *vtrace_losses(
            discount=config.learning.discount,
            rho_clip=settings.rho_clip,
            c_clip=settings.c_clip,
            entropy_coefficient=entropy,
            value_coefficient=value,
        ),
    )
    return {loss.name: loss for loss in losses}


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
