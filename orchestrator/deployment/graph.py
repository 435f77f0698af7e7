"""A policy as one graph of tensors: from the environment's observations to its actions, for export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from orchestrator.environments.spaces import agent_dtype, agent_parts, array_specs, start_of
from orchestrator.policies.distributions import masked
from orchestrator.policies.network import Observation, one_step

if TYPE_CHECKING:
    from orchestrator.deployment.loaded_policy import LoadedPolicy
    from orchestrator.environments.spaces import Array, Space

STATE, NEXT_STATE, MASK = "state", "next_state", "action_mask"  # no name twice: ONNX has one space for all


class PolicyGraph(nn.Module):
    """What `LoadedPolicy.act` and `value` compute of a batch: `inputs` and `outputs` by name, most likely actions.

    Observations are called "observation", or "observation/<key>" where there are several.
    """

    def __init__(self, policy: LoadedPolicy) -> None:
        super().__init__()
        self.module = policy.module
        self._keys = tuple(sorted(array_specs(policy.module.spaces.observation)))
        self._mask_keys = policy.mask_keys
        self._takes_mask = policy.masked and not self._mask_keys
        parts = agent_parts(policy.observation_space)
        self.inputs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        """Shapes without the leading dimension, and dtypes."""
        for key, (_, leaf) in sorted(parts.items()):
            self.inputs[observation_name(key)] = tuple(leaf.shape or ()), getattr(torch, agent_dtype(leaf))
            start = start_of(leaf)
            self.register_buffer(f"start_{len(self.inputs)}", None if start is None else torch.as_tensor(start))
        if self._takes_mask:
            self.inputs[MASK] = (policy.module.spaces.action_parameters,), torch.bool
        if policy.recurrent:
            self.inputs[STATE] = (policy.module.state_size,), torch.float32
        # In the order of their names, as every kind of tree of tensors has them.
        self.inputs = dict(sorted(self.inputs.items()))
        self._starts = {
            key: getattr(self, f"start_{index}")
            for index, key in enumerate(sorted(parts), 1)
            if getattr(self, f"start_{index}") is not None
        }
        squash = policy.config.policy.box_actions == "squash"
        self.to_environment = _ToEnvironment(policy.action_space, squash=squash)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        arrays: dict[str, Tensor] = {}
        for key in (*self._keys, *self._mask_keys):
            array = inputs[observation_name(key)]
            arrays[key] = array - self._starts[key] if key in self._starts else array
        observation: Observation = arrays[""] if "" in arrays else {key: arrays[key] for key in self._keys}
        outputs: dict[str, Tensor] = {}
        if self.module.recurrent:
            state = inputs[STATE]
            start = torch.zeros_like(state[:, :1], dtype=torch.bool)
            parameters, value, outputs[NEXT_STATE] = self.module(one_step(observation), state, start)
            parameters, value = parameters[:, 0], value[:, 0]
        else:
            parameters, value, _ = self.module(observation)
        parameters = masked(parameters, self._allowed(inputs, arrays))
        outputs["action"] = self.to_environment(self.module.distribution.mode(parameters))
        outputs["action_parameters"], outputs["value"] = parameters, value
        return dict(sorted(outputs.items()))

    def _allowed(self, inputs: dict[str, Tensor], arrays: dict[str, Tensor]) -> Tensor | None:
        if self._takes_mask:
            return inputs[MASK]
        if not self._mask_keys:
            return None
        parts = (arrays[key] for key in self._mask_keys)
        return torch.cat([part.reshape(part.shape[0], -1) for part in parts], 1) == 1


def observation_name(key: str) -> str:
    """Of an input, by the agent's key."""
    return f"observation/{key}" if key else "observation"


class _ToEnvironment(nn.Module):
    """As `ActionConverter`, in torch; in the nearest dtype that torch can compute with."""

    low: Tensor
    high: Tensor

    def __init__(self, space: Space, *, squash: bool) -> None:
        super().__init__()
        self._shape = tuple(space.shape or ())
        name = np.dtype(space.dtype).name
        self._dtype: torch.dtype = getattr(torch, name, torch.float64)
        if name.startswith("uint") and name != "uint8":
            self._dtype = torch.int64
        self._box = isinstance(space, spaces.Box)
        self._squash = squash and self._box
        self._integers = self._box and not self._dtype.is_floating_point
        start = start_of(space)
        self.register_buffer("start", None if start is None else torch.as_tensor(start))
        if isinstance(space, spaces.Box):
            low, high = space.low, space.high
            if self._integers:
                low, high = map(_as_int64, (low, high))
            else:
                low, high = low.astype(np.float64), high.astype(np.float64)
            self.register_buffer("low", torch.from_numpy(np.ascontiguousarray(low)).reshape(self._shape))
            self.register_buffer("high", torch.from_numpy(np.ascontiguousarray(high)).reshape(self._shape))
            finite_low, finite_high = self.low.double().isfinite(), self.high.double().isfinite()
            self.register_buffer("both", finite_low & finite_high)
            self.register_buffer("below", finite_low & ~finite_high)
            self.register_buffer("above", finite_high & ~finite_low)

    def forward(self, action: Tensor) -> Tensor:
        action = action.reshape(action.shape[0], *self._shape)
        if not self._box:
            start = self._buffers["start"]
            return (action if start is None else action + start).to(self._dtype)
        numbers = action.double()
        if self._squash:
            numbers = self._squashed(numbers)
        low, high = self.low.double(), self.high.double()
        if not self._integers:
            return torch.minimum(torch.maximum(numbers, low), high).to(self._dtype)
        wanted = torch.round(numbers)  # to even, as numpy
        inside = torch.minimum(torch.maximum(wanted, low), high).to(torch.int64)
        bounded = torch.where(wanted >= high, self.high, torch.where(wanted <= low, self.low, inside))
        return bounded.to(self._dtype)

    def _squashed(self, numbers: Tensor) -> Tensor:
        low, high = (torch.where(bound.double().isfinite(), bound.double(), 0.0) for bound in (self.low, self.high))
        share = 0.5 * torch.tanh(numbers) + 0.5
        result = torch.where(self.get_buffer("both"), low * (1.0 - share) + high * share, numbers)
        result = torch.where(self.get_buffer("below"), low + _softplus(numbers), result)
        return torch.where(self.get_buffer("above"), high - _softplus(-numbers), result)


def _softplus(numbers: Tensor) -> Tensor:
    return torch.relu(numbers) + torch.log1p(torch.exp(-numbers.abs()))


def example(graph: PolicyGraph, policy: LoadedPolicy, count: int, seed: int) -> dict[str, Tensor]:
    """Inputs for a graph, drawn from the spaces."""
    generator = np.random.default_rng(seed)
    inputs: dict[str, Tensor] = {}
    leaves = {observation_name(key): leaf for key, (_, leaf) in agent_parts(policy.observation_space).items()}
    masks = {observation_name(key) for key in policy.mask_keys}
    for name, (shape, dtype) in graph.inputs.items():
        if name in masks or name == MASK:
            inputs[name] = torch.ones(count, *shape, dtype=dtype)
        elif name == STATE:
            inputs[name] = torch.from_numpy(generator.normal(0, 0.1, (count, *shape)).astype(np.float32))
        else:
            inputs[name] = torch.from_numpy(_drawn(leaves[name], count, generator)).to(dtype)
    return inputs


def _drawn(space: Any, count: int, generator: np.random.Generator) -> Array:
    space.seed(int(generator.integers(2**31)))
    samples = np.stack([np.asarray(space.sample()) for _ in range(count)])
    return _as_int64(samples) if samples.dtype.kind == "u" else samples


def _as_int64(numbers: Array) -> Array:
    """What is beyond 63 bits becomes the largest number."""
    if numbers.dtype == np.uint64:
        numbers = np.minimum(numbers, np.uint64(np.iinfo(np.int64).max))
    return numbers.astype(np.int64)
