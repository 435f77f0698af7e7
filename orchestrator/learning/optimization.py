"""One optimizer step: clipped gradients, a guard against NaN that never waits for the device."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from state.parameter_arena import ParameterArena


_MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names for Adam's, in the order in which a checkpoint has them


class NonFiniteLossError(OrchestratorError, RuntimeError):
    """A loss or its gradient is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Parameters that lie side by side and have been learned equally often, as one."""

    parameter: torch.Tensor
    gradient: torch.Tensor
    moments: tuple[torch.Tensor, torch.Tensor]
    step: torch.Tensor
    """Optimizer steps taken with it."""


class Optimization:
    """Adam over the parameters of an arena, as few long vectors: one, unless some are frozen.

    A parameter that requires no gradient, or has none, is left as it is, with its moments and step count, as torch's
    own optimizers do. A step whose losses or gradient are not finite leaves all weights as they are: the fused kernel
    reads the flag on the device. What happened at each minibatch is written to a log there and read once per epoch.
    """

    def __init__(
        self,
        arena: ParameterArena,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float,
        max_minibatches: int,
        losses: int,
    ) -> None:
        self._arena = arena
        self._max_grad_norm = max_grad_norm
        self._gradients = arena.attach_gradients()
        specs = arena.layout.learned
        self._moments = {
            key: torch.zeros(arena.layout.learned_nbytes, dtype=torch.uint8, device=arena.memory.device)
            for key in _MOMENTS
        }
        self._active = (True,) * len(specs)
        self._steps = [torch.zeros((), device=arena.memory.device)] * len(specs)
        """Of each parameter; those of one run share a tensor."""
        self._runs = self._make_runs()
        beta1, beta2 = betas
        # The operation alone, since what torch's optimizers do around it costs more than the step of a small network.
        self._adam = partial(
            torch._fused_adamw_,  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            max_exp_avg_sqs=[],
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
        )
        self._rate = 0.0
        # One row per minibatch: the losses, then the gradient's norm (of the step that the minibatch ended).
        self._log = torch.zeros(max_minibatches, losses + 1, device=arena.memory.device)
        self._rows, self._norms = self._log.unbind(), self._log[:, -1].unbind()
        self._logged = 0
        self._first_of_step = 0
        self._waiting: list[torch.Tensor] = []
        """Gradients of minibatches whose step is yet to come, where they are not added up in the arena's memory."""

    @property
    def device(self) -> torch.device:
        return self._log.device

    def begin_epoch(self, rate: float) -> None:
        """Step with the learning rate `rate` from now on."""
        self._logged = self._first_of_step = 0
        self._waiting = []
        self._log.zero_()
        self._rate = rate
        self._arena.adopt()
        self._arena.zero_gradients()

    def backward(self, total: torch.Tensor, components: torch.Tensor, share: float) -> None:
        """Add `share` of a minibatch's gradient to the step in preparation."""
        if total.requires_grad:
            (total if share == 1.0 else total * share).backward()
        self._note(components)

    def take_gradients(self) -> list[torch.Tensor]:
        """What the last `backward()` of a tensor has given, one vector for each dtype; the memory is cleared."""
        self._arena.collect_gradients()
        taken = [gradient.clone() for gradient in self._arena.gradients]
        self._arena.zero_gradients()
        return taken

    def add_gradients(self, gradients: Sequence[torch.Tensor], components: torch.Tensor, share: float) -> None:
        """Add `share` of a minibatch's gradient, in vectors like those taken, to the step in preparation."""
        self._waiting = [
            own.add_(gradient, alpha=share) if self._waiting else gradient.mul_(share)
            for own, gradient in zip(self._waiting or gradients, gradients, strict=True)
        ]
        self._note(components)

    def _note(self, components: torch.Tensor) -> None:
        self._rows[self._logged][: len(components)] = components
        self._logged += 1

    def step(self) -> None:
        """Step with the gradients added up since the last step. Raises TensorsChanged."""
        for gradient, waiting in zip(self._arena.gradients if self._waiting else (), self._waiting, strict=True):
            gradient.copy_(waiting)
        self._waiting = []
        active = self._arena.collect_gradients()
        if active != self._active:
            self._active = active
            self._runs = self._make_runs()
        norm = self._norms[self._logged - 1]
        if len(self._runs) == 1:
            norm.copy_(torch.linalg.vector_norm(self._runs[0].gradient))
        elif self._runs:
            norms = [torch.linalg.vector_norm(run.gradient) for run in self._runs]
            norm.copy_(torch.linalg.vector_norm(torch.stack(norms)))
        # Adam divides gradients by the scale and does nothing where `found_inf` is 1, as for a gradient scaler.
        scale = None
        if math.isfinite(self._max_grad_norm):
            scale = torch.div(norm, self._max_grad_norm).clamp_(min=1.0)
        # The sum is finite exactly if every entry is (none is near the limit); then it less itself is 0, and else NaN.
        found_inf = self._log[self._first_of_step : self._logged].sum()
        found_inf.sub_(found_inf).ne_(0.0)
        self._first_of_step = self._logged
        for run in self._runs:
            run.step.add_(1.0)
            self._adam(
                [run.parameter],
                [run.gradient],
                [run.moments[0]],
                [run.moments[1]],
                state_steps=[run.step],
                lr=self._rate,
                grad_scale=scale,
                found_inf=found_inf,
            )
            run.step.sub_(found_inf)
        self._arena.zero_gradients()

    def read_log(self) -> torch.Tensor:
        """`[minibatches, losses + 1]` of this epoch on the CPU: the losses, then the gradient norm."""
        return self._log[: self._logged].cpu()

    # What a checkpoint keeps.

    @property
    def moments_nbytes(self) -> int:
        """Bytes that `write_moments` fills: the first moments of all trainable parameters, laid out like these in a
        snapshot of the policy, and after them the second ones."""
        return len(_MOMENTS) * self._arena.layout.learned_nbytes

    def write_moments(self, memory: torch.Tensor) -> torch.Tensor:
        """Copy the moments into `memory` (bytes, on any device); returns the step count of each parameter."""
        for part, key in zip(memory.chunk(len(_MOMENTS)), _MOMENTS, strict=True):
            part.copy_(self._moments[key])
        return torch.stack(self._steps)

    def read_moments(self, memory: torch.Tensor, steps: list[float]) -> None:
        """Take over what `write_moments` wrote and returned; a single count is of all parameters."""
        for part, key in zip(memory.chunk(len(_MOMENTS)), _MOMENTS, strict=True):
            self._moments[key].copy_(part)
        if len(steps) == 1:
            steps = steps * len(self._steps)
        self._steps = [torch.full((), step, device=self._arena.memory.device) for step in steps]
        self._runs = self._make_runs()

    def _make_runs(self) -> list[_Run]:
        """The active parameters, and new tensors for all step counts, by which runs part where they differ."""
        arena, device = self._arena, self._arena.memory.device
        counts = torch.stack(self._steps).cpu().tolist() if self._steps else []
        specs = arena.layout.learned
        ends = [*(spec.offset for spec in specs[1:]), arena.layout.learned_nbytes]
        keys = [(active, spec.dtype, count) for active, spec, count in zip(self._active, specs, counts, strict=True)]
        runs: list[_Run] = []
        for (active, dtype, count), group in itertools.groupby(range(len(specs)), key=keys.__getitem__):
            members = list(group)
            begin, end = specs[members[0]].offset, ends[members[-1]]
            step = torch.full((), count, device=device)
            for index in members:
                self._steps[index] = step
            if active:
                parameter, gradient, *moments = (
                    arena.vector(memory, dtype, begin, end)
                    for memory in (arena.memory, self._gradients, *self._moments.values())
                )
                runs.append(_Run(parameter, gradient, (moments[0], moments[1]), step))
        return runs
