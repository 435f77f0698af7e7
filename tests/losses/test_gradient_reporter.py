from __future__ import annotations

import anyio
import pytest
import torch

from losses import (
    GradientReporter,
    LearnerCallback,
    Loss,
    LossContext,
    LossStatistics,
    Minibatch,
    PolicyEvaluation,
    ppo_losses,
)
from orchestrator import Hook, LearningConfig, Trainer
from state.trainer_state import TrainerState
from tests.orchestrator.training import small_config


class Parts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        self.head = torch.nn.Linear(2, 1)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.fixed = torch.nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) * self.scale


def test_norms_are_those_of_the_gradients_before_they_are_cleared() -> None:
    torch.manual_seed(0)
    policy, statistics = Parts(), LossStatistics()
    reporter = GradientReporter(every=2)
    reporter.attach(LossContext(policy=policy, device=torch.device("cpu"), seed=0, statistics=statistics))
    expected: dict[str, list[float]] = {"body": [], "head": [], "scale": []}
    for epoch in (0, 1, 2):
        reporter.on_rollout_end(TrainerState(epoch=epoch))
        for mb_idx in range(3):
            policy(torch.randn(5, 3)).square().mean().backward()
            if epoch != 1:
                for part, norms in expected.items():
                    gradients = [one.grad for name, one in policy.named_parameters() if name.split(".")[0] == part]
                    flat = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
                    norms.append(float(flat.double().norm()))
            policy.zero_grad()
            reporter.on_mb_end(TrainerState(epoch=epoch, mb_idx=mb_idx))
        reporter.on_train_phase_end(TrainerState(epoch=epoch))
        if epoch == 1:
            assert statistics.read() == {}
        else:
            means = {f"gradient_norm/{part}": pytest.approx(sum(norms) / 3) for part, norms in expected.items()}
            assert statistics.read() == means
            expected = {part: [] for part in expected}


class Seen(Hook):
    overflow = "block"

    def __init__(self) -> None:
        self.stats: list[dict[str, float]] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.stats.append(dict(state.loss_stats or {}))


class One(Loss):
    """Has a gradient of a single part of the policy."""

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        return evaluation.value.mean()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_in_a_run_the_parts_make_up_the_whole_and_nothing_else_changes(accumulated: int) -> None:
    learning = LearningConfig(update_epochs=1, minibatches=2, accumulate_minibatches=accumulated)

    def stats(*extra: LearnerCallback) -> list[dict[str, float]]:
        hook = Seen()
        anyio.run(Trainer(small_config(epochs=5, learning=learning), losses=(*ppo_losses(), *extra), hooks=[hook]).run)
        return hook.stats

    plain, reported = stats(), stats(GradientReporter(every=2))
    prefix = "gradient_norm/"
    for epoch, (without, with_it) in enumerate(zip(plain, reported, strict=True)):
        parts = {name: with_it.pop(name) for name in list(with_it) if name.startswith(prefix)}
        assert with_it == without
        assert bool(parts) == (epoch % 2 == 0)
        if parts:
            assert sum(parts.values()) >= with_it["gradient_norm"] * 0.999 / accumulated
            assert max(parts.values()) <= with_it["gradient_norm"] * 1.001 * 2


def test_a_part_without_gradients_is_not_reported() -> None:
    hook = Seen()
    losses = (One(), GradientReporter(every=1))
    anyio.run(Trainer(small_config(epochs=2), losses=losses, hooks=[hook]).run)
    parts = [name for name in hook.stats[0] if name.startswith("gradient_norm/")]
    assert parts
    assert not any("actor" in name for name in parts)


def test_an_impossible_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="every must be at least 1"):
        GradientReporter(every=0)


class Raising(Loss):
    """Fails after the first backward pass; the hooks that the policy has then are what it was given to look at."""

    left: list[int] = []  # noqa: RUF012

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        if minibatch.mb_idx == 1:
            raise ArithmeticError("the loss gave up")
        return evaluation.value.sum()

    def abandon_epoch(self) -> None:
        hooks = [one._post_accumulate_grad_hooks for one in self.context.policy.parameters()]  # type: ignore[attr-defined]
        self.left.append(sum(len(hook or ()) for hook in hooks))


def test_an_epoch_that_fails_leaves_no_hooks_on_the_policy() -> None:
    Raising.left.clear()
    losses = (*ppo_losses(), GradientReporter(every=1), Raising())
    with pytest.raises(ArithmeticError, match="the loss gave up"):
        anyio.run(Trainer(small_config(), losses=losses).run)
    assert Raising.left == [0]
