"""What a learner goes on from at the boundary of two epochs, beside the policy it has published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from orchestrator.global_generators import global_generators, set_global_generators

if TYPE_CHECKING:
    from collections.abc import Callable

    from losses import LossSet
    from orchestrator.optimization import Optimization
    from orchestrator.policies import Policy


@dataclass(frozen=True, slots=True)
class LearnerState:
    """The moments are in memory of their own, laid out as `Optimization.moments_nbytes` says."""

    steps: list[float]
    """Optimizer steps taken with each flat parameter."""
    generator: torch.Tensor
    """State of the generator that minibatches are drawn with, of the device `generator_device`."""
    generator_device: str
    losses: Mapping[str, Mapping[str, Any]]
    """Every loss's state, by name."""
    reward_carry: torch.Tensor | None
    """Of the reward normaliser: it belongs to the episodes under way."""
    global_generators: Mapping[str, Any] | None
    """None where the learner has no process of its own."""


class LearnerBoundary:
    """Takes and restores the state at the boundary of two epochs.

    A run may be told to stop within an epoch, which then does not count: so the boundary before it is kept.
    """

    def __init__(
        self,
        policy: Policy,
        losses: LossSet,
        optimization: Optimization,
        generator: torch.Generator,
        *,
        own_process: bool,
    ) -> None:
        self._policy = policy
        self._losses = losses
        self._optimization = optimization
        self._generator = generator
        self._own_process = own_process
        # On the device, so that keeping the boundary is a copy there and waits for nothing.
        self._moments = torch.empty(optimization.moments_nbytes, dtype=torch.uint8, device=generator.device)
        self._kept: tuple[torch.Tensor, LearnerState] | None = None

    def keep(self) -> None:
        """The last epoch counts: this is the newest boundary."""
        steps = self._optimization.write_moments(self._moments)
        self._kept = steps, self._state()

    def write(self, memory: torch.Tensor) -> LearnerState:
        """The newest boundary; its moments go to `memory` (bytes, on the CPU)."""
        if self._kept is None:
            self.keep()
        assert self._kept is not None
        steps, state = self._kept
        memory.copy_(self._moments)
        carry = None if state.reward_carry is None else state.reward_carry.cpu()
        return replace(
            state, steps=steps.tolist(), losses=_with_tensors(state.losses, torch.Tensor.cpu), reward_carry=carry
        )

    def restore(self, memory: torch.Tensor, state: LearnerState) -> None:
        """Go on from a boundary. Raises ValueError for the state of other losses."""
        self._losses.load_state_dict(state.losses)
        self._optimization.read_moments(memory, state.steps)
        if state.generator_device == self._generator.device.type:
            self._generator.set_state(state.generator)
        if self._policy.reward_normalizer is not None:
            self._policy.reward_normalizer.carry = state.reward_carry
        if self._own_process and state.global_generators is not None:
            set_global_generators(state.global_generators)
        self.keep()

    def _state(self) -> LearnerState:
        normalizer = self._policy.reward_normalizer
        carry = None if normalizer is None or normalizer.carry is None else normalizer.carry.detach().clone()
        return LearnerState(
            steps=[],
            generator=self._generator.get_state(),
            generator_device=self._generator.device.type,
            # Copies, because a loss goes on writing to its own.
            losses=_with_tensors(self._losses.state_dict(), lambda tensor: tensor.detach().clone()),
            reward_carry=carry,
            global_generators=global_generators() if self._own_process else None,
        )


def _with_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _with_tensors(item, change) for key, item in cast("Mapping[str, Any]", value).items()}
    return [_with_tensors(item, change) for item in cast("list[Any]", value)] if isinstance(value, list) else value
