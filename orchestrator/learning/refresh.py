"""A batch that an older policy has collected, evaluated by the one that is about to learn from it: log-probabilities,
which PPO then clips against, and values.

The decoupled objective of Hilton et al. 2022 ("Batch size-invariance for policy optimization", section 3): which policy
has acted is one thing, which one an update stays close to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.collection.experience_fields import (
    ACTION_MASK,
    FINAL_OBSERVATION,
    FINAL_OBSERVATIONS,
    FINAL_RECURRENT_STATE,
    FOLLOWING_OBSERVATION,
    OBSERVATION,
    RECURRENT_STATE,
    observation_arrays,
)
from orchestrator.learning.page_locked import on_device
from orchestrator.policies.network import Observation, copied, evaluating

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.policies import Policy

_CPU_STEPS = 2048
"""Whose activations stay in a processor's cache."""


@dataclass(frozen=True, slots=True)
class Bootstraps:
    """What an experience's last values are values of, on the learner's device."""

    following: Observation
    """`[segments, ...]`, after the last steps."""
    cut: tuple[Tensor, Tensor]
    """Segments `[n]` and steps `[n]` in which episodes were truncated that the same step also began anew."""
    final: Observation
    """`[n, ...]`, the last observations of those."""
    state: Tensor | None
    """`[n, state_size]`, the recurrent state after which they came."""

    @classmethod
    def take(cls, arrays: dict[str, Any], device: torch.device) -> Bootstraps:
        """Take them out of the experience's `arrays`."""
        following = _taken(arrays, FOLLOWING_OBSERVATION)
        final = _taken(arrays, FINAL_OBSERVATION)
        states = arrays.pop(FINAL_RECURRENT_STATE, None)
        recorded = arrays.pop(FINAL_OBSERVATIONS)
        cut = arrays["truncated"] & ~arrays["terminated"] & (recorded > 0)[:, None]
        segments, steps = np.nonzero(cut)
        rows = segments, np.cumsum(cut, axis=1)[segments, steps] - 1
        return cls(
            following=observation_arrays(
                {name: on_device(array, device) for name, array in following.items()}, FOLLOWING_OBSERVATION
            ),
            cut=(on_device(segments, device), on_device(steps, device)),
            final=observation_arrays(
                {name: on_device(array[rows], device) for name, array in final.items()}, FINAL_OBSERVATION
            ),
            state=None if states is None else on_device(states[rows], device),
        )


@torch.no_grad()
def refreshed(
    policy: Policy, batch: Mapping[str, Tensor], bootstraps: Bootstraps, minibatch_steps: int
) -> dict[str, Tensor]:
    """What the policy makes of the `batch` `[segments, horizon, ...]`: `proximal_log_prob`, `value` and `next_value`.

    At most `minibatch_steps` go through the network at once, which with gradients fit the device; a policy with memory
    goes through whole segments, from the states that were recorded at their beginnings.
    """
    steps = min(minibatch_steps, _CPU_STEPS) if batch["valid"].is_cpu else minibatch_steps
    with evaluating(policy), policy.fixed():
        log_prob, value, last_state = _on_batch(policy, batch, steps)
        next_value = torch.empty_like(value)
        next_value[:, :-1] = value[:, 1:]
        next_value[:, -1] = policy.value(copied(bootstraps.following), last_state)
        if len(bootstraps.cut[0]):
            next_value[bootstraps.cut] = policy.value(copied(bootstraps.final), bootstraps.state)
    next_value.masked_fill_(batch["terminated"] | ~batch["valid"], 0.0)
    return {"proximal_log_prob": log_prob, "value": value, "next_value": next_value}


def _on_batch(policy: Policy, batch: Mapping[str, Tensor], steps: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probabilities and values `[segments, horizon]`, and the states after the segments."""
    shape = batch["valid"].shape
    names = [name for name in batch if name.partition("/")[0] in (OBSERVATION, "action", "valid")]
    if policy.spaces.masked:
        names.append(ACTION_MASK)
    if policy.recurrent:
        names += [RECURRENT_STATE, "episode_start"]
        rows = max(1, steps // shape[1])
        fields = {name: batch[name].split(rows) for name in names}
    else:
        fields = {name: batch[name].flatten(0, 1).split(steps) for name in names}
    parts: list[tuple[Tensor, ...]] = []
    for part in zip(*fields.values(), strict=True):
        of = dict(zip(fields, part, strict=True))
        log_prob, value, state = policy.log_prob_and_value(
            copied(observation_arrays(of)),
            of["action"],
            of[RECURRENT_STATE].clone() if policy.recurrent else None,
            of["episode_start"].clone() if policy.recurrent else None,
            of["valid"],
            of[ACTION_MASK] if policy.spaces.masked else None,
        )
        # A network may return the same tensors at every call.
        parts.append((log_prob, value.clone()) if state is None else (log_prob, value.clone(), state.clone()))
    log_prob, value, *states = (torch.cat(of_all) for of_all in zip(*parts, strict=True))
    return log_prob.view(shape), value.view(shape), states[0] if states else None


def _taken(arrays: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: arrays.pop(name) for name in list(arrays) if name.partition("/")[0] == field}
