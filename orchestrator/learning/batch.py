"""A slot of experience as the batch that is learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from losses import gae
from orchestrator.learning.refresh import Bootstraps, refreshed

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.policies import Policy


def read_batch(
    arrays: dict[str, Any], policy: Policy, device: torch.device, config: TrainerConfig, *, stale: bool
) -> dict[str, Tensor]:
    """The experience's `arrays` on the device, with `proximal_log_prob`, `advantage` and `return`.

    Where it is `stale`, an older policy than this one has collected it. Rewards are scaled where the policy does so.
    """
    learning = config.learning
    bootstraps = Bootstraps.take(arrays, device) if config.refreshes else None
    batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    batch["proximal_log_prob"] = batch["log_prob"]
    if stale and bootstraps is not None:
        batch |= refreshed(policy, batch, bootstraps, batch["log_prob"].numel() // learning.minibatches)
    valid = batch["valid"]
    episode_end = batch["terminated"] | batch["truncated"]
    if policy.reward_normalizer is not None:
        batch["reward"] = policy.reward_normalizer.update_and_scale(
            batch["reward"], episode_end, valid, batch["episode_start"][:, 0]
        )
    batch["advantage"], batch["return"] = gae(
        batch["reward"],
        batch["value"],
        batch["next_value"],
        episode_end,
        valid,
        learning.discount,
        learning.gae_lambda,
    )
    return batch
