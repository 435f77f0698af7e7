"""Running statistics of observations and rewards, and the scaling by them; all of it float32 buffers of the policy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from losses.advantage import discounted_scan
from orchestrator.policies.network import Observation
from state.frozen_mapping import FrozenMapping

_VARIANCE_FLOOR = 1e-8


class RunningNormalizer(nn.Module):
    """Shifts and scales tensors `[..., *shape]` to mean 0 and standard deviation 1 over all data seen in `update`.

    The result is limited to `clip` standard deviations. Without data it is the identity (but for the limit).
    The buffers are updated in place.
    """

    count: Tensor
    mean: Tensor
    scale: Tensor
    variance: Tensor
    origin: Tensor
    offset: Tensor

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        self._dimensions = len(shape)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("scale", torch.ones(shape))
        # The mean is `origin`, a value near the first data, plus `offset`. Sums of differences from the origin
        # stay exact in float32 (which every device has) even where the mean is large compared to the deviations.
        self.register_buffer("origin", torch.zeros(shape))
        self.register_buffer("offset", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        # Not as attributes of the module: looking one up so takes half as long as a small operation.
        buffers = cast("dict[str, Tensor]", self._buffers)
        return torch.sub(x, buffers["mean"]).mul_(buffers["scale"]).clamp_(-self.clip, self.clip)

    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Add the data `x` `[..., *shape]`; rows where `valid` `[...]` is False are left out (None: all count)."""
        self.merge(self.summary(x, valid))

    @torch.no_grad()
    def summary(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """What `merge` adds of the data, which are as in `update`: `[4, *shape]`, the number of rows, a value near
        them, and their mean's distance from it, and their variance. Nothing is read back from the device."""
        x = x.flatten(0, x.dim() - self._dimensions - 1) if x.dim() > self._dimensions else x.unsqueeze(0)
        if valid is None:
            mask = torch.ones(1, dtype=torch.bool, device=x.device)
            added = torch.full_like(self.count, len(x))
        else:
            mask = valid.flatten()
            added = mask.sum(dtype=self.count.dtype)
        mask = mask.view(-1, *(1,) * self._dimensions)
        divisor = added.clamp(min=1.0)
        zero = torch.zeros((), device=x.device)

        rough_mean = torch.where(mask, x, zero).sum(0) / divisor
        origin = torch.where(self.count == 0, rough_mean, self.origin)
        centered = x - origin
        offset = torch.where(mask, centered, zero).sum(0) / divisor
        variance = torch.where(mask, (centered - offset).square_(), zero).sum(0) / divisor
        return torch.stack([added.expand_as(offset), origin, offset, variance])

    @torch.no_grad()
    def merge(self, summary: Tensor) -> None:
        """Add data of which a `summary` was made when the same had been added to this: Chan et al. 1983, equation
        2.1."""
        of_each, origin, batch_offset, batch_variance = summary
        added = of_each.flatten()[0]
        self.origin.copy_(torch.where(self.count == 0, origin, self.origin))
        batch_offset = batch_offset + (origin - self.origin)
        total = self.count + added
        share = added / total.clamp(min=1.0)
        step = batch_offset - self.offset
        self.offset.add_(step * share)
        self.variance.copy_(torch.lerp(self.variance, batch_variance, share) + step.square() * (share * (1.0 - share)))
        self.count.copy_(total)
        self.mean.copy_(self.origin + self.offset)
        self.scale.copy_(torch.rsqrt(self.variance + _VARIANCE_FLOOR))


class ObservationNormalizer(nn.Module):
    """A `RunningNormalizer` for every part of an observation that is a Box of floats, if only of one; other parts pass
    unchanged."""

    def __init__(self, space: gymnasium.Space[Any], clip: float = 10.0) -> None:
        super().__init__()
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        shapes = {
            key: part.shape
            for key, part in sorted(parts.items())
            if isinstance(part, spaces.Box) and np.issubdtype(part.dtype, np.floating) and math.prod(part.shape)
        }
        # Not a ModuleDict: a key may have a dot, which names of modules may not.
        self.parts = nn.ModuleList(RunningNormalizer(shape, clip) for shape in shapes.values())
        # The same again, quicker to reach.
        self._by_key = tuple(zip(shapes, cast("Iterable[RunningNormalizer]", self.parts), strict=True))

    def forward(self, observation: Observation) -> Observation:
        if isinstance(observation, Tensor):
            return self._by_key[0][1].forward(observation) if self._by_key else observation
        return {**observation, **{key: part.forward(observation[key]) for key, part in self._by_key}}

    def of_part(self, prefix: str, space: gymnasium.Space[Any]) -> ObservationNormalizer:
        """One with the statistics that this one has of a part of the observations, which is of `space` itself."""
        own, whole = ObservationNormalizer(space), dict(self._by_key)
        for key, part in own._by_key:
            part.load_state_dict(whole[f"{prefix}/{key}" if key else prefix].state_dict())
        return own

    def summary(
        self, observation: Observation, valid: Tensor | None = None, own: Mapping[str, Tensor] = FrozenMapping({})
    ) -> Tensor:
        """What `merge` adds of observations `[..., *shape]`, of the steps where `valid` `[...]` is True (None: all); of
        the parts that `own` has by key only where that is True, too. `[n]`, as `RunningNormalizer.summary`."""
        summaries: list[Tensor] = []
        for key, part in self._by_key:
            counts = own.get(key)
            if counts is not None and valid is not None:
                counts = counts & valid
            data = observation if isinstance(observation, Tensor) else observation[key]
            summaries.append(part.summary(data, valid if counts is None else counts).flatten())
        return torch.cat(summaries) if summaries else torch.zeros(0)

    def merge(self, summary: Tensor) -> None:
        """Add the observations of a `summary`."""
        for _, part in self._by_key:
            own, summary = summary.split([4 * part.mean.numel(), len(summary) - 4 * part.mean.numel()])
            part.merge(own.view(4, *part.mean.shape))


class RewardNormalizer(nn.Module):
    """Divides rewards by the running standard deviation of the discounted sum of past rewards (Engstrom et al. 2020).

    The sum restarts with each episode. Results are limited to `clip`. Where types of agents have policies of their own,
    there are so many `policies`, and the rewards of each are divided by their own deviation: `policy` `[segments]` says
    whose a segment is, by its place (None: there is one policy).
    """

    def __init__(self, discount: float, clip: float = 10.0, policies: int = 1) -> None:
        super().__init__()
        self._discount = discount
        self._clip = clip
        self.statistics = RunningNormalizer(())
        """Of the discounted sums, of the first policy; the mean is not used."""
        self.of_others = nn.ModuleList(RunningNormalizer(()) for _ in range(1, policies))
        """Of the other policies."""
        self.carry: Tensor | None = None
        """`[segments]`: the discounted sum of each unfinished episode after the last batch. It belongs to the episodes
        under way and not to the policy: part of a checkpoint, not of `state_dict`."""

    def update_and_scale(
        self,
        reward: Tensor,
        episode_end: Tensor,
        valid: Tensor | None = None,
        begins: Tensor | None = None,
        policy: Tensor | None = None,
    ) -> Tensor:
        """Add a batch of rewards to the statistics, as `sums` takes them, and return it scaled by these."""
        self.merge(self.summary(self.sums(reward, episode_end, valid, begins), valid, policy))
        return self.scaled(reward, valid, policy)

    @torch.no_grad()
    def sums(
        self, reward: Tensor, episode_end: Tensor, valid: Tensor | None = None, begins: Tensor | None = None
    ) -> Tensor:
        """The discounted sums, which belong into the statistics, of a batch of rewards `[segments, horizon]`.

        The segments continue those of the last call, so their number must stay the same (else ValueError). Where
        `begins` `[segments]` (None: nowhere) says that a segment's first step is an episode's, it does not continue: a
        collector that was started again has left the episodes before unfinished.
        `episode_end` is True where the episode terminated or was truncated. Steps where `valid` is False
        (None: nowhere) do not count.
        """
        carry = reward.new_zeros(len(reward)) if self.carry is None else self.carry.to(reward.device)
        if len(carry) != len(reward):
            raise ValueError(
                f"a batch of {len(reward)} segments cannot continue one of {len(carry)}; set carry to None where the"
                " environments start again"
            )
        if begins is not None:
            carry = torch.where(begins, 0.0, carry)
        coefficient = episode_end.logical_not() * self._discount
        delta = reward.clone() if valid is None else torch.where(valid, reward, 0.0)
        delta[:, 0] += self._discount * carry
        # The sum runs forward in time; the scan runs backward.
        before = torch.nn.functional.pad(coefficient[:, :-1], (1, 0))
        sums = discounted_scan(delta.flip(1), before.flip(1)).flip(1)
        self.carry = torch.where(episode_end[:, -1], 0.0, sums[:, -1])
        return sums

    def summary(self, sums: Tensor, valid: Tensor | None = None, policy: Tensor | None = None) -> Tensor:
        """What `merge` adds of discounted sums: `[n]`."""
        if policy is None:
            return self.statistics.summary(sums, valid)
        return torch.cat(
            [
                one.summary(sums, own if valid is None else own & valid)
                for place, one in enumerate(self._each())
                for own in [(policy == place)[:, None].expand_as(sums)]
            ]
        )

    def merge(self, summary: Tensor) -> None:
        """Add the sums of a `summary`."""
        each = self._each()
        for one, own in zip(each, summary.chunk(len(each)), strict=True):
            one.merge(own)

    def scaled(self, reward: Tensor, valid: Tensor | None = None, policy: Tensor | None = None) -> Tensor:
        """Rewards divided by the standard deviation; 0 where `valid` is False."""
        if valid is not None:
            reward = torch.where(valid, reward, 0.0)
        scale = self.statistics.scale
        if policy is not None:
            scale = torch.stack([one.scale for one in self._each()])[policy][:, None]
        return (reward * scale).clamp_(-self._clip, self._clip)

    def _each(self) -> list[RunningNormalizer]:
        return [self.statistics, *cast("Iterable[RunningNormalizer]", self.of_others)]
