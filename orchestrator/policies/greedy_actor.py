"""The most likely actions of a small MLP for few observations, in numpy: there, torch takes longer to call its
operations, and to share them among threads, than to compute them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.policies.distributions import Categorical, DiagonalGaussian
from orchestrator.policies.mlp import MLP
from orchestrator.policies.normalization import RunningNormalizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.policies.policy import Policy

_FEW_ROWS = 8
"""Observations up to which this is faster than the policy."""
_LARGEST_WEIGHT = 1 << 16
"""Numbers of a layer's weight up to which it is; larger ones numpy shares among threads, which costs more than it
saves."""

_ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "tanh": lambda x: np.tanh(x, out=x),
    "relu": lambda x: np.maximum(x, 0.0, out=x),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
}


class GreedyActor:
    """The modes of the policy's distribution `[n, ...]` for observations `[n, size]`, as the policy's but for rounding.

    None for many observations, and where the policy's numbers may make no distribution: it is the policy then that can
    tell. Weights are read in the policy's own memory, so that this follows what is written there.
    """

    def __init__(self, policy: Policy, network: MLP) -> None:
        actor = network.actor
        numbers = [parameter.detach().numpy() for parameter in actor.parameters()]
        self._layers = list(zip(numbers[::2], numbers[1::2], strict=True))
        self._activation = _ACTIVATIONS[actor.activation]
        self._choice = isinstance(policy.distribution, Categorical)
        log_std = network.head.log_std
        self._log_std = None if log_std is None else log_std.detach().numpy()
        normalizer = policy.observation_normalizer
        parts = () if normalizer is None else cast("Iterable[RunningNormalizer]", normalizer.parts)
        part = next(iter(parts), None)
        self._normalizer = None if part is None else (part.mean.numpy(), part.scale.numpy())
        clip = np.float32(0.0 if part is None else part.clip)
        self._lowest, self._highest = np.asarray(-clip), np.asarray(clip)

    def __call__(self, observation: NDArray[np.float32]) -> NDArray[Any] | None:
        if len(observation) > _FEW_ROWS:
            return None
        # What overflows is infinite, as in torch, whatever the program has set for itself.
        with np.errstate(all="ignore"):
            outputs = self._outputs(observation)
        if not surely_finite(outputs) or (self._log_std is not None and not surely_finite(self._log_std)):
            return None
        return outputs.argmax(-1) if self._choice else outputs

    def _outputs(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._normalizer is not None:
            mean, scale = self._normalizer
            x = x - mean
            x *= scale
            np.minimum(np.maximum(x, self._lowest, out=x), self._highest, out=x)
        *hidden, (last_weight, last_bias) = self._layers
        for weight, bias in hidden:
            x = x.dot(weight)  # of which @ takes twice the time
            x += bias
            x = self._activation(x)
        x = x.dot(last_weight)
        x += last_bias
        return x


def greedy_actor(policy: Policy) -> GreedyActor | None:
    """That of a policy of one choice or of a Box's numbers; None where its network is another, or large, or does not
    observe plain vectors."""
    network = policy.network
    if type(network) is not MLP or not network.takes_vectors:
        return None
    if not isinstance(policy.distribution, (Categorical, DiagonalGaussian)):
        return None
    tensors = [*policy.parameters(), *policy.buffers()]
    if any(tensor.dtype is not torch.float32 or not tensor.is_cpu for tensor in tensors):
        return None
    small = max(parameter.numel() for parameter in network.actor.parameters()) <= _LARGEST_WEIGHT
    return GreedyActor(policy, network) if small else None


def surely_finite(array: NDArray[Any]) -> bool:
    """Whether floats are finite, as most are: the sum of their squares is. Where finite numbers are large it is not
    either, so look again then. It warns of nothing, as their sum would."""
    return array.dtype.kind == "f" and math.isfinite(np.vdot(array, array))
