"""As many passes over a batch as the policy's distance from the one that acted allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from losses.callback import LearnerCallback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from losses.callback import StateValue
    from losses.minibatch import Minibatch, PolicyEvaluation
    from state.trainer_state import TrainerState

_TOLERANCE = 1.5
"""Factor around the target within which nothing changes, as for the penalty of Schulman et al. 2017, section 4."""


class UpdateEpochsTuner(LearnerCallback):
    """Adapts the number of passes over each batch so that the KL divergence they end at stays near `target_kl` nats.

    After an epoch whose last pass had a mean KL (estimator k3, of the policy at the start of learning from the learned
    one) above 1.5 times the target, the next epochs make one pass less; below the target divided by 1.5, one more, up
    to `learning.update_epochs`, with which it begins. Tracks `update_epochs`, the passes made, and `kl`, that of the
    last one. Unlike PPO's `target_kl` it waits for the device once an epoch.

    Raises `ValueError` for a `target_kl` that is not positive.
    """

    def __init__(self, *, target_kl: float = 0.01, name: str | None = None) -> None:
        super().__init__(name=name)
        if not target_kl > 0:
            raise ValueError(f"target_kl must be positive, but is {target_kl}")
        self.target_kl = target_kl
        self.allowed = 0
        """Passes of the next epoch; 0: as many as are configured."""
        self._most = 0  # passes of any epoch so far
        self._minibatches = 0  # of one pass; 0 until a second pass has begun
        self._seen = 0  # minibatches of the present pass
        self._kls: list[Tensor] = []

    def observe(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> None:
        if minibatch.mb_idx == 0:
            self._kls.clear()
        log_ratio = evaluation.log_prob - minibatch["proximal_log_prob"]
        self._kls.append(minibatch.mean(log_ratio.expm1() - log_ratio))

    def on_mb_end(self, state: TrainerState) -> None:
        if state.mb_idx == 0 and state.update_epoch > 0:
            self._minibatches = self._seen
        self._seen = state.mb_idx + 1
        if self._seen == self._minibatches and state.update_epoch + 1 == self.allowed:
            self.stop_update()

    def on_train_phase_end(self, state: TrainerState) -> None:
        if not self._kls:
            return
        passes = state.update_epoch
        kl = float(torch.stack(self._kls).mean())
        self._kls.clear()
        self._most = max(self._most, passes)
        self.allowed = passes
        if kl > self.target_kl * _TOLERANCE:
            self.allowed = max(1, passes - 1)
        elif kl < self.target_kl / _TOLERANCE:
            self.allowed = min(self._most, passes + 1)
        self.track("kl", kl)
        self.track("update_epochs", passes)

    def state_dict(self) -> dict[str, StateValue]:
        return {"allowed": self.allowed, "most": self._most, "minibatches": self._minibatches}

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        if state.keys() != self.state_dict().keys() or not all(isinstance(value, int) for value in state.values()):
            raise ValueError(f"{self.name!r} keeps {list(self.state_dict())}, but was given {dict(state)}")
        self.allowed, self._most, self._minibatches = (int(str(state[name])) for name in self.state_dict())
