from __future__ import annotations

from typing import Any

import anyio
import pytest
import torch

from losses import (
    LearnerCallback,
    LossContext,
    LossStatistics,
    Minibatch,
    PolicyEvaluation,
    UpdateEpochsTuner,
    ppo_losses,
)
from orchestrator import LearningConfig, Trainer
from state.trainer_state import TrainerState
from tests.orchestrator.training import small_config

TARGET = 0.02


def log_ratio_of(kl: float) -> float:
    """The positive log-ratio x with e^x - 1 - x = kl."""
    low, high = 0.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if torch.tensor(middle, dtype=torch.float64).expm1() - middle < kl else (low, middle)
    return low


def minibatch_of(update_epoch: int, mb_idx: int) -> Minibatch:
    return Minibatch(
        fields={"proximal_log_prob": torch.zeros(4, dtype=torch.float64)},
        valid=torch.ones(4, dtype=torch.bool),
        weight=None,
        epoch=0,
        update_epoch=update_epoch,
        mb_idx=mb_idx,
    )


def evaluation_of(kl: float) -> Any:
    log_prob = torch.full((4,), log_ratio_of(kl), dtype=torch.float64)
    return PolicyEvaluation(
        log_prob=log_prob, entropy=torch.zeros(4), value=torch.zeros(4), action_parameters=torch.zeros(4)
    )


def train_epoch(tuner: UpdateEpochsTuner, kls: list[float], minibatches: int = 3) -> int:
    """One epoch as a learner makes it, with this KL in each pass; the passes made."""
    tuner.stop_requested = False
    passes = done = 0
    while passes < len(kls) and not tuner.stop_requested:
        for mb_idx in range(minibatches):
            tuner.observe(minibatch_of(passes, mb_idx), evaluation_of(kls[passes]))
            tuner.on_mb_end(TrainerState(update_epoch=passes, mb_idx=mb_idx))
            done += 1
            if tuner.stop_requested:
                assert mb_idx == minibatches - 1, "passes are made whole"
        passes += 1
    tuner.on_train_phase_end(TrainerState(update_epoch=passes, mb_idx=done))
    return passes


@pytest.fixture
def tuner() -> UpdateEpochsTuner:
    return attached(UpdateEpochsTuner(target_kl=TARGET))


def attached(tuner: UpdateEpochsTuner) -> UpdateEpochsTuner:
    context = LossContext(policy=torch.nn.Linear(1, 1), device=torch.device("cpu"), seed=0, statistics=LossStatistics())
    tuner.attach(context)
    return tuner


def test_passes_become_fewer_while_the_policy_ends_too_far_and_more_while_too_near(tuner: UpdateEpochsTuner) -> None:
    far, near, there = 2 * TARGET, 0.5 * TARGET, 1.2 * TARGET
    made = [train_epoch(tuner, [kl] * 4) for kl in (there, far, far, there, far, far, near, near, near, near, there)]
    assert made == [4, 4, 3, 2, 2, 1, 1, 2, 3, 4, 4]


def test_only_the_last_pass_counts(tuner: UpdateEpochsTuner) -> None:
    train_epoch(tuner, [0.0, 0.0, 3 * TARGET])
    assert tuner.allowed == 2
    assert tuner.context.statistics.read() == {
        "update_epochs_tuner/kl": pytest.approx(3 * TARGET, rel=1e-5),
        "update_epochs_tuner/update_epochs": 3.0,
    }


def test_it_goes_on_after_a_restart_as_it_would_have(tuner: UpdateEpochsTuner) -> None:
    for _ in range(2):
        train_epoch(tuner, [2 * TARGET] * 4)
    again = attached(UpdateEpochsTuner(target_kl=TARGET))
    again.load_state_dict(tuner.state_dict())
    kls = [[0.5 * TARGET] * 4] * 4
    assert [train_epoch(again, kl) for kl in kls] == [train_epoch(tuner, kl) for kl in kls] == [2, 3, 4, 4]
    with pytest.raises(ValueError, match="keeps"):
        again.load_state_dict({"allowed": 1})


def test_an_impossible_target_is_refused() -> None:
    with pytest.raises(ValueError, match="target_kl must be positive"):
        UpdateEpochsTuner(target_kl=0.0)


@pytest.mark.slow
def test_it_holds_the_divergence_of_a_run_down() -> None:
    """With a rate at which ten passes go too far, against the same run without it."""
    learning = LearningConfig(update_epochs=10, minibatches=2, learning_rate=3e-2)

    def last_state(*extra: LearnerCallback) -> TrainerState:
        config = small_config(epochs=15, learning=learning)
        return anyio.run(Trainer(config, losses=(*ppo_losses(), *extra)).run)

    plain, tuned = last_state(), last_state(UpdateEpochsTuner(target_kl=0.01))
    assert plain.loss_stats is not None
    assert tuned.loss_stats is not None
    assert plain.update_epoch == 10
    assert tuned.update_epoch < 10
    assert tuned.loss_stats["update_epochs_tuner/update_epochs"] == tuned.update_epoch
    assert tuned.mb_idx == 2 * tuned.update_epoch
