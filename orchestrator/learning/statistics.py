"""The statistics of one epoch of learning: means of the losses, and figures of the batch that was learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from orchestrator.config.paths import PATH
from orchestrator.environments.agents import SHARE
from orchestrator.learning.optimization import NonFiniteLossError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from orchestrator.config.settings import LearningConfig


_LOOKED_AT = ("valid", "value", "return", "advantage", "reward", "log_prob", "proximal_log_prob")


def loss_statistics(
    log: NDArray[Any], names: Sequence[str], *, epoch: int, rate: float, learning: LearningConfig
) -> dict[str, float]:
    """Means over the epoch's minibatches of `log`, as `Optimization.read_log` gives it, for the active losses `names`.

    Raises NonFiniteLossError naming the first loss and minibatch that is not finite, or, where `learning.nonfinite` is
    "skip", counts such minibatches and leaves them out. `epoch` counts from 0, `rate` is its learning rate.
    """
    columns = [*range(len(names)), log.shape[1] - 1]
    good = np.isfinite(log[:, columns])
    stats: dict[str, float] = {}
    if not good.all():
        mb_idx = int(np.argmin(good.all(axis=1)))
        culprit = [*names, "the gradient"][int(np.argmin(good[mb_idx]))]
        if learning.nonfinite != "skip":
            raise NonFiniteLossError(
                f"{culprit} is not finite in epoch {epoch + 1}, minibatch {mb_idx + 1} of the epoch "
                f"(update epoch {mb_idx // learning.minibatches + 1}); that step was left out. "
                f"Lower {PATH.learning.learning_rate} (here {rate:g}); look at the rewards and observations for huge "
                "values, and at the network for rows of logits that are all -inf; or set "
                f"{PATH.learning.nonfinite} to 'skip' to leave such steps out"
            )
        stats["skipped_minibatches"] = float(len(log) - good.all(axis=1).sum())
    for index, name in enumerate(names):
        stats[name] = float(np.mean(log[good[:, index], index])) if good[:, index].any() else float("nan")
    norms = log[good[:, -1] & (log[:, -1] > 0), -1]
    if len(norms):
        stats["gradient_norm"] = float(np.mean(norms))
    return stats


def with_means_of_policies(stats: Mapping[str, float], policies: Sequence[str]) -> dict[str, float]:
    """`stats`, preceded by what each of the `policies` has as `<name>/<statistic>` of all agents together: means by
    their shares of the agent steps."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for name, value in stats.items():
        policy, _, of = name.partition("/")
        if policy in policies and of not in stats and of != SHARE:
            share = stats.get(f"{policy}/{SHARE}", 0.0)
            sums[of] = sums.get(of, 0.0) + share * value
            weights[of] = weights.get(of, 0.0) + share
    return {name: total / weights[name] for name, total in sums.items() if weights[name]} | dict(stats)


def batch_statistics(batch: Mapping[str, torch.Tensor], segments: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Means over the epoch's valid steps, and the share of the returns' variance that the values explain. Nothing where
    no step is valid, as in a shard whose machine was lost.

    Where types of agents have policies of their own, `segments` are those of each by its name: then also the same of
    each that has any step, as `<name>/<statistic>`, and its share of the steps.

    Of a batch that was evaluated anew, also how far the policy at the start of learning was from the one that acted:
    the KL divergence (estimator k3), and the standard deviation of the ratio of their probabilities, whose mean is 1.
    """
    if not batch["valid"].any():
        return {}
    stats = _statistics(batch)
    steps = {policy: int(batch["valid"][own].sum()) for policy, own in segments.items()}
    for policy in (policy for policy in segments if steps[policy]):
        part = {name: batch[name][segments[policy]] for name in _LOOKED_AT}
        if batch["proximal_log_prob"] is batch["log_prob"]:
            part["proximal_log_prob"] = part["log_prob"]
        stats |= {f"{policy}/{name}": value for name, value in _statistics(part).items()}
        stats[f"{policy}/{SHARE}"] = steps[policy] / sum(steps.values())
    return stats


def _statistics(batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
    value, returns, advantage, reward = (
        batch[name].masked_select(batch["valid"]) for name in ("value", "return", "advantage", "reward")
    )
    numbers = torch.stack(
        [value.mean(), returns.mean(), reward.mean(), returns.var(correction=0), (returns - value).var(correction=0)]
    )
    deviation, mean = torch.std_mean(advantage, correction=0)
    more = [mean, deviation]
    if batch["proximal_log_prob"] is not batch["log_prob"]:
        log_ratio = (batch["proximal_log_prob"] - batch["log_prob"]).masked_select(batch["valid"])
        excess = log_ratio.expm1()
        more += [(excess - log_ratio).mean(), excess.std(correction=0)]
    all_numbers = torch.cat([numbers, torch.stack(more)]).cpu().tolist()
    value_mean, return_mean, reward_mean, variance, residual, advantage_mean, advantage_deviation, *stale = all_numbers
    return dict(zip(("behavior_kl", "behavior_ratio_std"), stale, strict=False)) | {
        "value": value_mean,
        "return": return_mean,
        "reward": reward_mean,
        "advantage": advantage_mean,
        "advantage_std": advantage_deviation,
        "explained_variance": 1.0 - residual / variance if variance > 0 else float("nan"),
    }
