"""One optimizer step: clipped gradients, a guard against NaN that never waits for the device."""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

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


class _Log:
    """One row per minibatch: the losses, then the gradient's norm (of the step that the minibatch ended)."""

    def __init__(self, minibatches: int, losses: int, device: torch.device) -> None:
        self.memory = torch.zeros(minibatches, losses + 1, device=device)
        self.rows, self.norms = self.memory.unbind(), self.memory[:, -1].unbind()
        self.count = 0
        self.first_of_step = 0


class Optimization:
    """Adam over the parameters of an arena, as few long vectors: one, unless some are frozen.

    A parameter that requires no gradient, or has none, is left as it is, with its moments and step count, as torch's
    own optimizers do. A step whose losses or gradient are not finite leaves all weights as they are: the fused kernel
    reads the flag on the device. What happened at each minibatch is written to a log there and read once per epoch.

    A device can repeat what it does for a minibatch (`graphs.py`): it finds everything where it was, also the learning
    rate, and the log's row with `at_fixed_place`.
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
        accumulate_minibatches: int = 1,
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
        self.changes = 0
        """How often what is stepped with has become other tensors."""
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
        device = arena.memory.device
        # CUDA's kernel wants the rate in float32; the others round it themselves.
        rounded = device.type in ("cuda", "mps")
        self._rate = torch.zeros((), dtype=torch.float32 if rounded else torch.float64, device=device)
        self._log = self._of_epoch = _Log(max_minibatches, losses, device)
        self._accumulates = accumulate_minibatches > 1
        self._of_step = _Log(accumulate_minibatches, losses, device)
        """Rows of the minibatches since the last step, always in the same places."""
        self._waiting: list[torch.Tensor] = []
        """Gradients of minibatches whose step is yet to come, where they are not added up in the arena's memory."""

    @property
    def device(self) -> torch.device:
        return self._rate.device

    def begin_epoch(self, rate: float) -> None:
        """Step with the learning rate `rate` from now on."""
        for log in (self._of_epoch, self._of_step):
            log.count = log.first_of_step = 0
            log.memory.zero_()
        self._waiting = []
        self._rate.fill_(rate)
        self._arena.adopt()
        self._arena.zero_gradients()

    def backward(self, total: torch.Tensor, components: torch.Tensor, share: float) -> None:
        """Add `share` of a minibatch's gradient to the step in preparation."""
        if total.requires_grad:
            (total if share == 1.0 else total * share).backward()
        self._note(components)

    def take_gradients(self, *, alone: bool) -> list[torch.Tensor]:
        """What the last `backward()` of a tensor has given, one vector for each dtype. Their memory is cleared, unless
        they are `alone` in their minibatch and step: then they stay where the step expects them."""
        self._arena.collect_gradients()
        if alone and not self._accumulates:
            return self._arena.gradients
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
        log = self._log
        log.rows[log.count][: len(components)] = components
        log.count += 1

    def step(self) -> None:
        """Step with the gradients added up since the last step. Raises TensorsChanged."""
        for gradient, waiting in zip(self._arena.gradients if self._waiting else (), self._waiting, strict=True):
            gradient.copy_(waiting)
        self._waiting = []
        active = self._arena.collect_gradients()
        if active != self._active:
            self._active = active
            self._runs = self._make_runs()
        log = self._log
        norm = log.norms[log.count - 1]
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
        found_inf = log.memory[log.first_of_step : log.count].sum()
        found_inf.sub_(found_inf).ne_(0.0)
        log.first_of_step = log.count
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
        return self._of_epoch.memory[: self._of_epoch.count].cpu()

    # For a device that repeats what it has done for a minibatch.

    @contextmanager
    def at_fixed_place(self, place: int) -> Generator[None]:
        """While entered, a minibatch's row is written to a place that depends only on how many minibatches came since
        the last step: `place`. `log_from` puts it into the log."""
        self._log = self._of_step
        self._log.count, self._log.first_of_step = place, 0
        try:
            yield
        finally:
            self._log = self._of_epoch

    def log_from(self, place: int, *, stepped: bool) -> None:
        """Add the row that was written `at_fixed_place` to the log; `stepped` says that a step came with it."""
        log = self._of_epoch
        log.rows[log.count].copy_(self._of_step.rows[place])
        log.count += 1
        if stepped:
            log.first_of_step = log.count

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that a minibatch changes."""
        steps = [run.step for run in self._runs]
        return [self._arena.memory, self._gradients, *self._moments.values(), *steps, self._of_step.memory]

    @property
    def learned(self) -> list[torch.Tensor]:
        """What is learned, and its gradients, as vectors."""
        return [vector for run in self._runs for vector in (run.parameter, run.gradient)]

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
        self.changes += 1
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
