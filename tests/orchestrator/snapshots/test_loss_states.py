"""What a loss gives a checkpoint to keep is plain data, or is refused by name; no run ends with nothing saved."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from losses import Loss, LossStateError
from orchestrator import CheckpointsConfig, Trainer
from orchestrator.checkpoints import CheckpointFolder
from orchestrator.checkpoints.checkpoint import open_checkpoint
from tests.orchestrator.training import Backend, losses_with, small_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from losses import Minibatch, PolicyEvaluation
    from orchestrator import TrainerConfig

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


KINDS = {
    "object": (lambda: {"kept": object()}, r"Keeping\.state_dict\(\)\.kept is <object .*> of type object"),
    "lambda": (
        lambda: {"kept": [1, lambda: 0]},
        r"\.kept\[1\] is <function .*> of type function",
    ),
    "file": (lambda: {"kept": {"in": sys.__stdout__}}, r"\.kept\.in is <_io.TextIOWrapper .*> of type TextIOWrapper"),
    "set": (lambda: {"kept": {1, 2}}, r"\.kept is \{1, 2\} of type set"),
    "key": (lambda: {"kept": {1: 2}}, r"the keys \[1\] of Keeping\.state_dict\(\)\.kept must be text"),
    "nothing": (lambda: None, r"returned None of type NoneType, which is no dict"),
    "error": (lambda: {}["kept"], r"Keeping\.state_dict\(\) raised KeyError: 'kept'"),
}


class Keeping(Loss):
    """Its state is of a kind that no checkpoint can keep, from some epoch on."""

    def __init__(self, kind: str, from_epoch: int = 0) -> None:
        super().__init__()
        self.kind, self.from_epoch, self.epoch = kind, from_epoch, 0

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        self.epoch = minibatch.epoch + 1
        return evaluation.value.mean() * 0.0

    def state_dict(self) -> Any:
        return KINDS[self.kind][0]() if self.epoch >= self.from_epoch else {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch = int(state["epoch"])


def config_of(folder: Path | None, backend: Backend = "inline") -> TrainerConfig:
    return small_config(epochs=3, backend=backend, run_dir=folder, checkpoints=CheckpointsConfig(every=1, keep=0))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_state_that_no_checkpoint_can_keep_is_refused_before_training(kind: str, tmp_path: Path) -> None:
    with pytest.raises(LossStateError, match=KINDS[kind][1]) as caught:
        await Trainer(config_of(tmp_path), losses=losses_with(Keeping(kind))).run()
    assert "the state of the loss 'keeping' can't be saved" in str(caught.value)
    assert kind == "error" or "return a dict of tensors, numpy arrays, numbers, text" in str(caught.value)


async def test_nobody_asks_for_the_state_where_no_checkpoint_is_taken() -> None:
    final = await Trainer(config_of(None), losses=losses_with(Keeping("object"))).run()
    assert final.epoch == 3


@pytest.mark.parametrize("backend", ["inline", "process"])
@pytest.mark.parametrize("kind", ["lambda", "file", "error"])
async def test_where_a_loss_cannot_be_saved_any_more_the_policy_is_saved_alone(
    kind: str, backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, backend)
    final = await Trainer(config, losses=losses_with(Keeping(kind, from_epoch=2))).run()
    assert final.epoch == 3
    saved = [open_checkpoint(path) for path in CheckpointFolder(tmp_path / "checkpoints").list()]
    assert saved[-1].epoch == 3  # one in between may be skipped where the disk is slow
    assert all(one.manifest["resumable"] == (one.epoch == 1) for one in saved)
    for epoch in (2, 3):
        said = f"epoch {epoch} is saved as the policy alone, without what resumes it: the state of the loss 'keeping'"
        assert caplog.text.count(said) == 1
    resumed = Trainer(replace(config, total_agent_steps=10**3), losses=losses_with(Keeping(kind, 99)), resume=tmp_path)
    await resumed.run()
    assert "the checkpoint holds the policy alone" in caplog.text
