"""What a policy's outputs mean: distributions of actions, one class per kind of action space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch.nn import functional as F

if TYPE_CHECKING:
    import gymnasium
    from torch import Tensor


class ActionDistribution(Protocol):
    """A family of distributions over actions: `[..., parameters]` numbers make actions `[..., *action_shape]`.

    It holds no tensors. Log-probabilities and entropies are `[...]`, in nats.
    """

    @property
    def parameters(self) -> int:
        """Numbers that a network must give per action."""
        ...

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one action."""
        ...

    @property
    def action_dtype(self) -> torch.dtype:
        """Of the actions."""
        ...

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """The randomness of `shape` samples, `[*shape, ...]`, on the generator's device.

        It does not depend on the parameters, so that a whole rollout's can be drawn at once.
        """
        ...

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """The actions that `noise` picks."""
        ...

    def mode(self, parameters: Tensor) -> Tensor:
        """The likeliest actions."""
        ...

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Log-probability of each action."""
        ...

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob`, and the entropy of the whole distribution, sharing their common parts."""
        ...

    def defined(self, parameters: Tensor) -> Tensor:
        """Where `[...]` the parameters make a distribution; an action drawn from others would mean nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of `parameters` choices, for `Discrete`; the parameters are unnormalized log-probabilities.

    -inf forbids a choice: it is never drawn, counts 0 in the entropy, as in torch's own, and gets no gradient. At least
    one choice must be possible.
    """

    parameters: int

    @property
    def action_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def action_dtype(self) -> torch.dtype:
        return torch.int64

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return _gumbel((*shape, self.parameters), generator)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        # The largest of the log-probabilities plus Gumbel noise is an exact sample (Maddison et al. 2014).
        return torch.add(parameters, noise).argmax(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return _log_probs(parameters).gather(0, action.unsqueeze(0)).squeeze(0)

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = _log_probs(parameters)
        log_prob = log_probs.gather(0, action.unsqueeze(0)).squeeze(0)
        return log_prob, _entropy(log_probs)

    def defined(self, parameters: Tensor) -> Tensor:
        return _some_choice(parameters)


@dataclass(frozen=True, slots=True)
class MultiCategorical:
    """Independent choices, each of `sizes[i]`, for `MultiDiscrete`; the parameters are theirs, one after another.

    Each is a `Categorical`, and must have a choice that is possible.
    """

    sizes: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return sum(self.sizes)

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)

    @property
    def action_dtype(self) -> torch.dtype:
        return torch.int64

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return _gumbel((*shape, self.parameters), generator)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return self.mode(torch.add(parameters, noise))

    def mode(self, parameters: Tensor) -> Tensor:
        return torch.stack([part.argmax(-1) for part in parameters.split(self.sizes, -1)], -1)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return self._log_prob(self._log_probs(parameters), action)

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        parts = self._log_probs(parameters)
        return self._log_prob(parts, action), _entropy(torch.cat(parts))

    def defined(self, parameters: Tensor) -> Tensor:
        return torch.stack([_some_choice(part) for part in parameters.split(self.sizes, -1)]).all(0)

    def _log_probs(self, parameters: Tensor) -> list[Tensor]:
        return [_log_probs(part) for part in parameters.split(self.sizes, -1)]

    @staticmethod
    def _log_prob(parts: list[Tensor], action: Tensor) -> Tensor:
        chosen = action.movedim(-1, 0).split(1)
        return torch.cat([part.gather(0, index) for part, index in zip(parts, chosen, strict=True)]).sum(0)


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Independent bits, for `MultiBinary`; the parameters are the logits of 1, which must be finite."""

    parameters: int

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (self.parameters,)

    @property
    def action_dtype(self) -> torch.dtype:
        return torch.int64

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        # The difference of two choices' noise: a bit is the choice of 0, with the log-probability 0, or 1.
        one, other = _gumbel((2, *shape, self.parameters), generator)
        return one.sub_(other)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return self.mode(torch.add(parameters, noise))

    def mode(self, parameters: Tensor) -> Tensor:
        return (parameters > 0).long()

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return (action * parameters - F.softplus(parameters)).sum(-1)

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        normalizer = F.softplus(parameters)
        entropy = (normalizer - parameters.sigmoid() * parameters).sum(-1)
        return (action * parameters - normalizer).sum(-1), entropy

    def defined(self, parameters: Tensor) -> Tensor:
        return parameters.isfinite().all(-1)


@dataclass(frozen=True, slots=True)
class DiagonalGaussian:
    """Independent normal numbers, for `Box`; the parameters are the means, then the log standard deviations.

    Actions are float32 `[..., dimensions]` whatever the shape and the dtype of the box, and not limited to its bounds.
    """

    dimensions: int

    @property
    def parameters(self) -> int:
        return 2 * self.dimensions

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (self.dimensions,)

    @property
    def action_dtype(self) -> torch.dtype:
        return torch.float32

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        device = None if generator is None else generator.device
        return torch.randn((*shape, self.dimensions), generator=generator, device=device)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        return torch.addcmul(mean, log_std.exp(), noise)

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters[..., : self.dimensions]

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        return self._log_prob(mean, log_std, log_std.sum(-1), action)

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = parameters.chunk(2, -1)
        total_log_std = log_std.sum(-1)
        entropy = total_log_std + 0.5 * self.dimensions * (1.0 + math.log(2.0 * math.pi))
        return self._log_prob(mean, log_std, total_log_std, action), entropy

    def defined(self, parameters: Tensor) -> Tensor:
        return parameters.isfinite().all(-1)

    def _log_prob(self, mean: Tensor, log_std: Tensor, total_log_std: Tensor, action: Tensor) -> Tensor:
        squares = ((action - mean) * (-log_std).exp()).square().sum(-1)
        constant = 0.5 * self.dimensions * math.log(2.0 * math.pi)
        return torch.add(total_log_std + constant, squares, alpha=0.5).neg()


def masked(parameters: Tensor, action_mask: Tensor | None) -> Tensor:
    """Logits `[..., choices]` that forbid what is False in the `action_mask` `[..., choices]` (None: nothing)."""
    return parameters if action_mask is None else torch.where(action_mask, parameters, -math.inf)


def distribution_for(action_space: gymnasium.Space[Any]) -> ActionDistribution:
    """The distribution for `action_space`; raises ValueError naming the space where there is none."""
    match action_space:
        case spaces.Discrete():
            return Categorical(int(action_space.n))
        case spaces.MultiDiscrete() if action_space.nvec.ndim == 1:
            return MultiCategorical(tuple(int(size) for size in action_space.nvec))
        case spaces.MultiBinary():
            return Bernoulli(math.prod(action_space.shape))
        case spaces.Box() if np.issubdtype(action_space.dtype, np.number):
            return DiagonalGaussian(math.prod(action_space.shape))
        case _:
            raise ValueError(
                f"the action space {action_space} is not supported; supported are Discrete, MultiDiscrete with one"
                " axis, MultiBinary, and Box of numbers"
            )


def _gumbel(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    # Minus the logarithm of an exponentially distributed number.
    device = None if generator is None else generator.device
    return torch.empty(shape, device=device).exponential_(generator=generator).log_().neg_()


def _log_probs(parameters: Tensor) -> Tensor:
    # [choices, ...]: with few choices, reductions over the first dimension are several times faster than over
    # the last one, because they are vectorized over the batch; that is more than the transposition costs.
    return torch.log_softmax(parameters.movedim(-1, 0), 0)


def _some_choice(parameters: Tensor) -> Tensor:
    # The largest is -inf where every choice is forbidden, and NaN where any parameter is.
    return parameters.amax(-1).isfinite()


def _entropy(log_probs: Tensor) -> Tensor:
    # 0 times the lowest number is 0, where 0 times -inf, of a forbidden choice, would be NaN.
    lowest = torch.finfo(log_probs.dtype).min
    return (log_probs.exp() * F.threshold(log_probs, lowest, lowest)).sum(0).neg()
