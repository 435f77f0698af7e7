"""Small runs for tests: configurations that take a fraction of a second; losses and environments that record or
fail."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import gymnasium
import numpy as np
import psutil
import torch

from losses import Loss, ppo_losses
from orchestrator import CollectionConfig, Hook, LearningConfig, PolicyConfig, TrainerConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from losses import Minibatch, PolicyEvaluation
    from state.trainer_state import TrainerState

Backend = Literal["inline", "process"]


def small_config(
    *,
    epochs: int = 4,
    num_environments: int = 4,
    horizon: int = 32,
    backend: Backend = "inline",
    collectors: int = 1,
    environment_options: Mapping[str, object] | None = None,
    **settings: Any,
) -> TrainerConfig:
    """CartPole with a small network, for about `epochs` epochs."""
    return TrainerConfig(
        total_agent_steps=settings.pop("total_agent_steps", max(1, epochs - 1) * num_environments * horizon + 1),
        collection=CollectionConfig(
            num_environments=num_environments,
            horizon=horizon,
            backend=backend,
            collectors=collectors,
            environment_options=environment_options or {},
        ),
        learning=settings.pop("learning", LearningConfig(update_epochs=2, minibatches=2)),
        policy=settings.pop("policy", PolicyConfig(hidden_sizes=(8,))),
        **settings,
    )


def worker_processes() -> set[int]:
    """The worker processes of this test process: each has a keeper, which is a child of the fork server."""
    own = psutil.Process()
    servers = [child for child in own.children() if "orchestrator.workers.forking" in " ".join(child.cmdline())]
    workers: set[int] = set()
    for keeper in (keeper for server in servers for keeper in server.children()):
        with contextlib.suppress(psutil.NoSuchProcess):  # a keeper ends a moment after it has said that its worker has
            workers.update(worker.pid for worker in keeper.children() if worker.status() != "zombie")
    return workers


STATE_FIELDS = (
    "rollout_stats",
    "loss_stats",
    "eval_scores",
    "experience",
    "policy",
    "latest_checkpoint_uri",
    "latest_wandb_uri",
    "stats_tracker",
    "timer",
)


def describe(event: str, state: TrainerState) -> dict[str, Any]:
    """What a test wants to know of a state, as JSON can say it."""
    return {
        "event": event,
        "epoch": state.epoch,
        "agent_step": state.agent_step,
        "update_epoch": state.update_epoch,
        "mb_idx": state.mb_idx,
        "policy_version": state.policy_version,
        "filled": [name for name in STATE_FIELDS if getattr(state, name) is not None],
        "steps": None if state.experience is None else int(state.experience["valid"].sum()),
        "timer": None if state.timer is None else dict(state.timer.timer_seconds),
    }


class WaitForCheckpoints(Hook):
    """Training waits for the checkpoint that is due, which a busy machine would leave out for a newer one."""

    overflow = "block"
    max_lag = 1

    def __init__(self, config: TrainerConfig) -> None:
        assert config.run_dir is not None
        self._every = config.checkpoints.every
        self._folder = Path(config.run_dir) / "checkpoints"

    async def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch % self._every == 0:
            while not (self._folder / f"{state.epoch:08d}" / "manifest.json").exists():
                await anyio.sleep(0.001)


class RecordingLoss(Loss):
    """Learns nothing and appends each of its callbacks to a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        return evaluation.value.sum() * 0.0

    def _record(self, event: str, state: TrainerState) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(describe(event, state)) + "\n")

    def on_new_training_run(self, state: TrainerState) -> None:
        self._record("on_new_training_run", state)

    def on_rollout_start(self, state: TrainerState) -> None:
        self._record("on_rollout_start", state)

    def on_rollout_end(self, state: TrainerState) -> None:
        self._record("on_rollout_end", state)

    def on_mb_end(self, state: TrainerState) -> None:
        self._record("on_mb_end", state)

    def on_train_phase_end(self, state: TrainerState) -> None:
        self._record("on_train_phase_end", state)

    def on_epoch_end(self, state: TrainerState) -> None:
        self._record("on_epoch_end", state)


class KeepingLoss(Loss):
    """Keeps every state that it is given, and fails where one has changed since; changes the policy in every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[TrainerState, float]] = []

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        return evaluation.log_prob.sum()

    def on_rollout_end(self, state: TrainerState) -> None:
        self._kept.append((state, _checksum(state)))

    def on_epoch_end(self, state: TrainerState) -> None:
        self._kept.append((state, _checksum(state)))
        sums = {checksum for _, checksum in self._kept}
        assert len(sums) == len(self._kept), "each epoch has other content"
        for kept, checksum in self._kept:
            assert _checksum(kept) == checksum, f"the state of epoch {kept.epoch} has changed"


def _checksum(state: TrainerState) -> float:
    tensors = [] if state.policy is None else state.policy.tensors.values()
    experience = 0.0 if state.experience is None else float(state.experience["observation"].sum(dtype=np.float64))
    return experience + sum(float(tensor.sum(dtype=np.float64)) for tensor in tensors)


class FailingLoss(Loss):
    """Fails in the second epoch, in the way it is told to."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        loss = evaluation.value.square().mean()
        if minibatch.epoch == 1 and minibatch.update_epoch == 1:
            if self.how == "raise":
                raise ArithmeticError("the loss gave up")
            if self.how == "nan":
                return loss * float("nan")
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return loss


def losses_with(extra: Loss) -> tuple[Loss, ...]:
    return *ppo_losses(), extra


class FailingEnvironment(gymnasium.Env[Any, Any]):
    """Ends every episode after 10 steps; at step `fail_at` it fails in the way it is told to.

    `once` names a file that lets it fail only if the file does not exist yet.
    """

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, how: str = "", fail_at: int = 40, once: str = "") -> None:
        self._how = how
        self._fail_at = fail_at
        self._once = Path(once) if once else None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._steps == self._fail_at and self._may_fail():
            if self._how == "raise":
                raise OSError("the simulator is gone")
            if self._how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._how == "exit":
                sys.exit(3)
            if self._how == "fork":
                os.fork()  # and both go on
            if self._how == "hang":
                while True:
                    time.sleep(0.01)
        observation = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return observation, 1.0, self._steps % 10 == 0, False, {}

    def _may_fail(self) -> bool:
        if self._once is None:
            return True
        if self._once.exists():
            return False
        self._once.touch()
        return True


def failing_environment(**options: Any) -> gymnasium.Env[Any, Any]:
    return FailingEnvironment(**options)
