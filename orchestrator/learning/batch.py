"""A slot of experience as the batch that is learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from losses import gae
from orchestrator.collection.experience_fields import observation_arrays
from orchestrator.learning.page_locked import on_device
from orchestrator.learning.refresh import Bootstraps, refreshed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.policies import Policy
    from orchestrator.policies.normalization import RewardNormalizer


def read_batches(
    shards: Sequence[dict[str, Any]],
    policy: Policy,
    device: torch.device,
    config: TrainerConfig,
    *,
    stale: bool,
    gather: Callable[[Tensor], Tensor] = lambda summaries: summaries,
) -> list[dict[str, Tensor]]:
    """The experience's arrays, of each of its `shards`, on the device, with `proximal_log_prob`, `advantage` and
    `return`.

    Where it is `stale`, an older policy than this one has collected it. Rewards are scaled where the policy does so;
    `gather` makes `[shards, n]` statistics of all shards of those `[n]` of each one here.
    """
    batches = [_on_device(arrays, policy, device, config, stale=stale) for arrays in shards]
    if policy.reward_normalizer is not None:
        _scale_rewards(policy, policy.reward_normalizer, batches, gather)
    for batch in batches:
        batch["advantage"], batch["return"] = gae(
            batch["reward"],
            batch["value"],
            batch["next_value"],
            _episode_end(batch),
            batch["valid"],
            config.learning.discount,
            config.learning.gae_lambda,
        )
    return batches


def add_observations(policy: Policy, batches: Sequence[dict[str, Tensor]], gather: Callable[[Tensor], Tensor]) -> None:
    """Add the observations of all shards to the statistics that observations are normalized by, which stay as they are
    while a batch is learned from. `gather` as of `read_batches`."""
    summaries = [policy.observation_summary(observation_arrays(batch), batch["valid"]) for batch in batches]
    for summary in gather(torch.stack(summaries)):
        policy.merge_observations(summary)


def _on_device(
    arrays: dict[str, Any], policy: Policy, device: torch.device, config: TrainerConfig, *, stale: bool
) -> dict[str, Tensor]:
    bootstraps = Bootstraps.take(arrays, device) if config.refreshes else None
    batch = {name: on_device(array, device) for name, array in arrays.items()}
    batch["proximal_log_prob"] = batch["log_prob"]
    if stale and bootstraps is not None:
        batch |= refreshed(policy, batch, bootstraps, batch["log_prob"].numel() // config.learning.minibatches)
    return batch


def _scale_rewards(
    policy: Policy,
    normalizer: RewardNormalizer,
    batches: Sequence[dict[str, Tensor]],
    gather: Callable[[Tensor], Tensor],
) -> None:
    """All of a batch by statistics that have all of it."""

    def policies_of(batch: dict[str, Tensor]) -> Tensor | None:
        return policy.policies_of(observation_arrays(batch))

    sums = normalizer.sums(
        torch.cat([batch["reward"] for batch in batches]),
        torch.cat([_episode_end(batch) for batch in batches]),
        torch.cat([batch["valid"] for batch in batches]),
        torch.cat([batch["episode_start"][:, 0] for batch in batches]),
    )
    parts = zip(sums.chunk(len(batches)), batches, strict=True)
    summaries = [normalizer.summary(part, batch["valid"], policies_of(batch)) for part, batch in parts]
    for summary in gather(torch.stack(summaries)):
        normalizer.merge(summary)
    for batch in batches:
        batch["reward"] = normalizer.scaled(batch["reward"], batch["valid"], policies_of(batch))


def _episode_end(batch: Mapping[str, Tensor]) -> Tensor:
    return batch["terminated"] | batch["truncated"]
