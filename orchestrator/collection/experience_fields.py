"""The fields that every experience has, for an environment's spaces and a policy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

from gymnasium import spaces as gymnasium_spaces

from orchestrator.environments.spaces import Space, array_specs
from orchestrator.policies.network import Spaces
from state.experience import ExperienceSpecError, FieldSpec

OBSERVATION = "observation"
ACTION_MASK = "action_mask"
RECURRENT_STATE = "recurrent_state"
# What the values at the ends of segments and of truncated episodes are values of.
FOLLOWING_OBSERVATION = "following_observation"
FINAL_OBSERVATION = "final_observation"
FINAL_RECURRENT_STATE = "final_recurrent_state"
FINAL_OBSERVATIONS = "final_observations"

COMPUTED = frozenset({"proximal_log_prob", "advantage", "return"})
"""What the learner adds to each batch."""

T = TypeVar("T")

_STEP_FIELDS = (
    FieldSpec("log_prob", (), "float32"),
    FieldSpec("value", (), "float32"),
    FieldSpec("next_value", (), "float32"),
    FieldSpec("reward", (), "float32"),
    FieldSpec("terminated", (), "bool"),
    FieldSpec("truncated", (), "bool"),
    FieldSpec("valid", (), "bool"),
    FieldSpec("episode_start", (), "bool"),
)


def experience_fields(spaces: Spaces, state_size: int = 0, *, refreshes: bool = False) -> list[FieldSpec]:
    """What collectors record by themselves; a recurrent policy has a `state_size` above 0.

    Where the learner `refreshes` the values, also what they are bootstrapped from: the `following_observation` of each
    segment, and where episodes are reset in the step that ends them, the `final_observation` of those that were
    truncated. These are packed: row i is the segment's i-th, of as many as `final_observations` says, so that the rest
    of that memory is never touched.
    """
    arrays = array_specs(spaces.observation).items()
    fields = [FieldSpec(observation_field(key), spec.shape, spec.dtype.name) for key, spec in arrays]
    fields.append(_action_field(spaces.action))
    if spaces.masked:
        fields.append(FieldSpec(ACTION_MASK, (spaces.action_parameters,), "bool"))
    fields.extend(_STEP_FIELDS)
    if state_size:
        fields.append(FieldSpec(RECURRENT_STATE, (state_size,), "float32", per="segment"))
    if refreshes:
        for key, spec in arrays:
            following = observation_field(key, FOLLOWING_OBSERVATION)
            fields.append(FieldSpec(following, spec.shape, spec.dtype.name, per="segment"))
            fields.append(FieldSpec(observation_field(key, FINAL_OBSERVATION), spec.shape, spec.dtype.name))
        if state_size:
            fields.append(FieldSpec(FINAL_RECURRENT_STATE, (state_size,), "float32"))
        fields.append(FieldSpec(FINAL_OBSERVATIONS, (), "int32", per="segment"))
    return fields


def check_declared(declared: Iterable[FieldSpec], own: Iterable[FieldSpec]) -> None:
    """Raises ExperienceSpecError where losses declare a field that every minibatch has anyway."""
    names = {one.name for one in own} | COMPUTED
    taken = [one.name for one in declared if one.name in names]
    if taken:
        raise ExperienceSpecError(
            f"a loss declares the experience fields {taken}, which every minibatch has: read minibatch[{taken[0]!r}]"
            " without declaring it, or give what comes from the infos another name"
        )


def observation_field(key: str, of: str = OBSERVATION) -> str:
    """The field of the observation's array `key`, which is "" where the space is not a Dict."""
    return f"{of}/{key}" if key else of


def observation_arrays(fields: Mapping[str, T], of: str = OBSERVATION) -> T | dict[str, T]:
    """The observation among the fields: as it is, or by key where the space is a Dict."""
    if of in fields:
        return fields[of]
    return {name.removeprefix(f"{of}/"): fields[name] for name in fields if name.startswith(f"{of}/")}


def _action_field(space: Space) -> FieldSpec:
    if isinstance(space, gymnasium_spaces.Box):
        return FieldSpec("action", (math.prod(space.shape),), "float32")
    return FieldSpec("action", tuple(space.shape or ()), "int64")
