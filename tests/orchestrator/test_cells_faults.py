"""Cells whose learners die, hang, fail or are to end: all hear of it, and what is to go on does."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from losses import Loss
from orchestrator import Run, Trainer
from tests.orchestrator.test_cells import EPOCHS, assert_same, config_for, trained
from tests.orchestrator.training import losses_with, worker_processes

if TYPE_CHECKING:
    from torch import Tensor

    from losses import Minibatch, PolicyEvaluation

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Deadly(Loss):
    """In one cell's learner and once, at an epoch: is killed, stopped, or raises."""

    def __init__(self, folder: Path, how: str = "", epoch: int = 2) -> None:
        super().__init__()
        self._folder, self._how, self._epoch = folder, how, epoch

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        marker = self._folder / "done"
        if self._how and minibatch.epoch == self._epoch and minibatch.update_epoch == 1:
            with contextlib.suppress(FileExistsError):  # by the first cell that comes here, and by that one alone
                marker.touch(exist_ok=False)
                if self._how == "raise":
                    raise ValueError("by one cell alone")
                os.kill(os.getpid(), getattr(signal, self._how))
        return 0.01 * evaluation.value.square().mean()


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
async def test_when_a_learner_dies_or_hangs_all_are_replaced_and_learn_the_same_bits(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = await trained(config_for(1), losses_with(Deadly(tmp_path)))
    config = dataclasses.replace(config_for(2), cell_timeout=600.0 if how == "SIGKILL" else 3.0)
    replaced = await trained(config, losses_with(Deadly(tmp_path, how)))
    assert (tmp_path / "done").exists()
    assert_same(undisturbed, replaced)
    said = "died during 'learn': killed by SIGKILL" if how == "SIGKILL" else "does not answer 'learn'"
    assert any(f"worker 'learner-{cell}' {said}" in caplog.text for cell in (0, 1))
    assert "starting it again (1 of 3) within an hour: it continues with the policy of epoch 2" in caplog.text
    assert not worker_processes()


class Forking(Deadly):
    """Has a child that was forked, and so has all that is open in the learner."""

    _forked = False

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        if minibatch.epoch == self._epoch and not self._forked:
            self._forked = True
            if not os.fork():
                try:
                    time.sleep(1000)
                finally:
                    os._exit(0)
        return super().compute(minibatch, evaluation)


@pytest.mark.parametrize("how", ["raise", "SIGKILL"])
async def test_the_end_of_a_learner_is_noticed_while_a_child_of_it_lives(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.loop.learners.ANSWER_SECONDS", 600.0)  # by the other learners themselves
    config = dataclasses.replace(config_for(4), cell_timeout=600.0)
    if how == "raise":
        with pytest.raises(ValueError, match="by one cell alone"):
            await trained(config, losses_with(Forking(tmp_path, how)))
    else:
        assert (await trained(config, losses_with(Forking(tmp_path, how)))).epoch == EPOCHS
    assert (tmp_path / "done").exists()
    assert not worker_processes()


async def test_an_error_in_one_cell_is_the_runs_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="by one cell alone") as caught:
        await trained(config_for(2), losses_with(Deadly(tmp_path, "raise")))
    assert any("the loss 'deadly' in epoch 3" in note for note in caught.value.__notes__)
    assert not worker_processes()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["cancel", "stop", "stop_now", "abort"])
async def test_however_a_run_ends_every_learner_ends(how: str) -> None:
    trainer = Trainer(config_for(2, epochs=100_000))
    started: list[Run] = []
    with anyio.fail_after(200), anyio.CancelScope() as scope, contextlib.suppress(ZeroDivisionError):
        async with trainer.start() as run:
            started.append(run)
            await run.next_state(None)
            assert {"learner-0", "learner-1"} <= run.statistics().workers.keys()
            if how == "cancel":
                scope.cancel()
                await anyio.sleep_forever()
            if how == "abort":
                raise ZeroDivisionError
            getattr(run, how)()
            await run.result()
    assert started
    assert not worker_processes()
