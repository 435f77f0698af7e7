"""A learner's state between two epochs, except for the policy that it has published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import Parameter

from orchestrator.workers.global_generators import global_generators, set_global_generators

if TYPE_CHECKING:
    from losses import LossSet
    from orchestrator.learning.learning_rate import LearningRate
    from orchestrator.learning.optimization import Optimization
    from orchestrator.policies import Policy
    from state.policy_snapshot import PolicyLayout


@dataclass(frozen=True, slots=True)
class LearnerState:
    """The moments are in separate memory, laid out as `Optimization.moments_nbytes` says."""

    steps: list[float]
    """Optimizer steps taken with each parameter; of all, where there is only one number."""
    generator: torch.Tensor
    """State of the generator that minibatches are drawn with, of the device `generator_device`."""
    generator_device: str
    losses: Mapping[str, Mapping[str, Any]]
    """Every loss's state, by name."""
    reward_carry: torch.Tensor | None
    """Of the reward normalizer: it belongs to the episodes under way."""
    global_generators: Mapping[str, Any] | None
    """None where the learner has no separate process."""
    frozen: tuple[str, ...] | None = None
    """Parameters that have been frozen since the start; None where that is not known."""
    rate_adaptation: float = 1.0
    """`LearningRate.adaptation`."""


@dataclass(frozen=True, slots=True)
class Unsaved:
    """A learner's state can't be had."""

    reason: str


class LearnerMemory:
    """Takes and restores what a learner must remember, between two epochs."""

    def __init__(
        self,
        policy: Policy,
        losses: LossSet,
        optimization: Optimization,
        learning_rate: LearningRate,
        layout: PolicyLayout,
        generator: torch.Generator,
        *,
        own_process: bool,
    ) -> None:
        self._policy = policy
        self._losses = losses
        self._optimization = optimization
        self._learning_rate = learning_rate
        self._learned_names = {spec.name for spec in layout.learned}
        self._generator = generator
        self._own_process = own_process

    @property
    def reward_carry(self) -> torch.Tensor | None:
        """Of the reward normalizer, on the CPU."""
        normalizer = self._policy.reward_normalizer
        return None if normalizer is None or normalizer.carry is None else normalizer.carry.cpu()

    def losses_state(self) -> Mapping[str, Mapping[str, Any]]:
        """Every loss's state, by name. Raises LossStateError where a checkpoint can't keep one."""
        return _on_cpu(self._losses.state_dict())

    def write(self, memory: torch.Tensor) -> LearnerState:
        """The state between two epochs; the moments go to `memory` (bytes, on the CPU). Raises LossStateError."""
        return LearnerState(
            steps=self._optimization.write_moments(memory).cpu().tolist(),
            generator=self._generator.get_state(),
            generator_device=self._generator.device.type,
            losses=self.losses_state(),
            reward_carry=self.reward_carry,
            global_generators=global_generators() if self._own_process else None,
            frozen=tuple(name for name, parameter in self._learned() if not parameter.requires_grad),
            rate_adaptation=self._learning_rate.adaptation,
        )

    def restore(self, memory: torch.Tensor, state: LearnerState) -> None:
        """Go on from there. Raises ValueError for the state of other losses."""
        self._losses.load_state_dict(state.losses)
        self._optimization.read_moments(memory, state.steps)
        if state.generator_device == self._generator.device.type:
            self._generator.set_state(state.generator)
        if self._policy.reward_normalizer is not None:
            self._policy.reward_normalizer.carry = state.reward_carry
        if state.frozen is not None:
            for name, parameter in self._learned():
                parameter.requires_grad_(name not in state.frozen)
        self._learning_rate.adaptation = state.rate_adaptation
        if self._own_process and state.global_generators is not None:
            set_global_generators(state.global_generators)

    def _learned(self) -> list[tuple[str, Parameter]]:
        return [one for one in self._policy.named_parameters() if one[0] in self._learned_names]


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        items = [_on_cpu(item) for item in cast("list[Any] | tuple[Any, ...]", value)]
        return items if isinstance(value, list) else tuple(items)
    return value
