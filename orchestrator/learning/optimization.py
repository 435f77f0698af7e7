"""One optimizer step: clipped gradients, a guard against NaN that never waits for the device, the learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from state.error import OrchestratorError

if TYPE_CHECKING:
    from state.parameter_arena import ParameterArena


Schedule: TypeAlias = Literal["constant", "linear", "cosine"]


class NonFiniteLossError(OrchestratorError, RuntimeError):
    """A loss or its gradient is NaN or infinite."""


class Optimization:
    """Adam over the flat parameters of an arena.

    A step whose losses or gradient are not finite leaves the weights as they are: the fused kernel is told on the
    device. What happened at each minibatch is written to a log on the device and read once per epoch.
    """

    def __init__(
        self,
        arena: ParameterArena,
        *,
        learning_rate: float,
        schedule: Schedule,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float,
        max_minibatches: int,
        losses: int,
    ) -> None:
        self._arena = arena
        self._learning_rate = learning_rate
        self._schedule: Schedule = schedule
        self._max_grad_norm = max_grad_norm
        self._parameters = arena.trainable()
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )
        # One row per minibatch: the losses, then the gradient's norm (of the step that the minibatch ended).
        self._log = torch.zeros(max_minibatches, losses + 1, device=arena.memory.device)
        self._logged = 0
        self._first_of_step = 0

    def begin_epoch(self, progress: float, scale: float = 1.0) -> float:
        """Set the learning rate to `scale` times that of a run that is `progress` (0 to 1) through; returns it."""
        self._logged = self._first_of_step = 0
        self._log.zero_()
        rate = self._learning_rate * schedule_factor(self._schedule, progress) * scale
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._arena.zero_gradients()
        return rate

    def backward(self, total: torch.Tensor, components: torch.Tensor, share: float) -> None:
        """Add `share` of a minibatch's gradient to the step in preparation."""
        if total.requires_grad:
            (total if share == 1.0 else total * share).backward()
        self._log[self._logged, : len(components)] = components
        self._logged += 1

    def step(self) -> None:
        """Step with the gradients added up since the last step."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = (
            torch.linalg.vector_norm(gradients[0])
            if len(gradients) == 1
            else torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
        )
        if math.isfinite(self._max_grad_norm):
            scale = (self._max_grad_norm / (norm + 1e-6)).clamp_(max=1.0)
            for gradient in gradients:
                gradient.mul_(scale)
        self._log[self._logged - 1, -1] = norm
        step_log = self._log[self._first_of_step : self._logged]
        self._first_of_step = self._logged
        optimizer: Any = self._optimizer
        # What torch's own gradient scaler does; the sum is finite exactly if every entry is (none is near the limit).
        optimizer.grad_scale = None
        optimizer.found_inf = step_log.sum().isfinite().logical_not().float()
        self._optimizer.step()
        self._arena.zero_gradients()

    def read_log(self) -> torch.Tensor:
        """`[minibatches, losses + 1]` of this epoch on the CPU: the losses, then the gradient norm."""
        return self._log[: self._logged].cpu()

    # What a checkpoint keeps.

    @property
    def moments_nbytes(self) -> int:
        """Bytes that `write_moments` fills: the first moments of all trainable parameters, laid out like these in a
        snapshot of the policy, and after them the second ones."""
        return 2 * sum(parameter.nbytes for parameter in self._parameters)

    def write_moments(self, memory: torch.Tensor) -> torch.Tensor:
        """Copy the moments into `memory` (bytes, on any device); returns the step count of each flat parameter."""
        steps: list[torch.Tensor] = []
        for place, parameter in self._places():
            state = self._optimizer.state.get(parameter)
            steps.append(state["step"] if state else torch.zeros((), device=parameter.device))
            for key, begin in place.items():
                target = memory[begin : begin + parameter.nbytes]
                if state:
                    target.copy_(state[key].view(torch.uint8))
                else:
                    target.zero_()
        return torch.stack(steps)

    def read_moments(self, memory: torch.Tensor, steps: list[float]) -> None:
        """Take over what `write_moments` wrote and returned."""
        for (place, parameter), step in zip(self._places(), steps, strict=True):
            moments = {
                key: memory[begin : begin + parameter.nbytes].to(parameter.device, copy=True).view(parameter.dtype)
                for key, begin in place.items()
            }
            self._optimizer.state[parameter] = {"step": torch.full((), step, device=parameter.device), **moments}

    def _places(self) -> list[tuple[dict[str, int], torch.nn.Parameter]]:
        half = self.moments_nbytes // 2
        begin = 0
        places: list[tuple[dict[str, int], torch.nn.Parameter]] = []
        for parameter in self._parameters:
            places.append(({"exp_avg": begin, "exp_avg_sq": half + begin}, parameter))
            begin += parameter.nbytes
        return places


def schedule_factor(schedule: Schedule, progress: float) -> float:
    """What the learning rate is multiplied with when `progress` (0 to 1) of the run is done."""
    progress = min(max(progress, 0.0), 1.0)
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
