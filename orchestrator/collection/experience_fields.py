"""The fields that every experience has, for an environment's spaces and a policy."""

from __future__ import annotations

import math

from gymnasium import spaces as gymnasium_spaces

from orchestrator.environments.spaces import Space, array_specs
from orchestrator.policies.network import Spaces
from state.experience import FieldSpec

OBSERVATION = "observation"
RECURRENT_STATE = "recurrent_state"

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


def experience_fields(spaces: Spaces, state_size: int = 0) -> list[FieldSpec]:
    """What collectors record by themselves; a recurrent policy has a `state_size` above 0."""
    fields = [
        FieldSpec(observation_field(key), spec.shape, spec.dtype.name)
        for key, spec in array_specs(spaces.observation).items()
    ]
    fields.append(_action_field(spaces.action))
    fields.extend(_STEP_FIELDS)
    if state_size:
        fields.append(FieldSpec(RECURRENT_STATE, (state_size,), "float32", per="segment"))
    return fields


def observation_field(key: str) -> str:
    """The field of the observation's array `key`, which is "" where the space is not a Dict."""
    return f"{OBSERVATION}/{key}" if key else OBSERVATION


def _action_field(space: Space) -> FieldSpec:
    if isinstance(space, gymnasium_spaces.Box):
        return FieldSpec("action", (math.prod(space.shape),), "float32")
    return FieldSpec("action", tuple(space.shape or ()), "int64")
