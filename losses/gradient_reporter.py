"""Gradient norms of the policy's parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from losses.callback import LearnerCallback

if TYPE_CHECKING:
    from torch import Tensor, nn

    from state.trainer_state import TrainerState


class GradientReporter(LearnerCallback):
    """Every `every` epochs, tracks `gradient_norm/<module>` for each top-level module of the policy with weights.

    Of all losses together, before the norm is clipped, as the mean over the epoch's minibatches; where the gradients
    of several minibatches are accumulated, of what has been added up so far. In other epochs it costs nothing.

    Raises `ValueError` for an `every` below 1.
    """

    def __init__(self, *, every: int = 10, name: str | None = None) -> None:
        super().__init__(name=name)
        if every < 1:
            raise ValueError(f"every must be at least 1 epoch, but is {every}")
        self.every = every
        self._parts: dict[str, list[nn.Parameter]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._squares: dict[nn.Parameter, Tensor] = {}

    def on_rollout_end(self, state: TrainerState) -> None:
        if state.epoch % self.every == 0:
            self._parts.clear()
            for name, parameter in self.context.policy.named_parameters():
                if parameter.requires_grad:
                    self._parts.setdefault(name.partition(".")[0], []).append(parameter)
            # Before a callback comes the gradients are clipped and then cleared: they are looked at as they are made.
            parameters = [parameter for part in self._parts.values() for parameter in part]
            self._handles = [one.register_post_accumulate_grad_hook(self._note) for one in parameters]

    def on_mb_end(self, state: TrainerState) -> None:
        if self._squares:
            for name, parameters in self._parts.items():
                squares = [self._squares[parameter] for parameter in parameters if parameter in self._squares]
                if squares:
                    self.track(f"gradient_norm/{name}", torch.stack(squares).sum().sqrt())
            self._squares.clear()

    def on_train_phase_end(self, state: TrainerState) -> None:
        self.abandon_epoch()

    def abandon_epoch(self) -> None:
        self._squares.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _note(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._squares[parameter] = parameter.grad.square().sum()  # pyright: ignore[reportArgumentType]
