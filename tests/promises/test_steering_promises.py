"""What docs/hooks.md promises about what hooks return and how they steer a run, through `Trainer`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from losses import Loss, Minibatch, PolicyEvaluation
from orchestrator import (
    CheckpointsConfig,
    Hook,
    StateUpdate,
    Trainer,
)
from orchestrator.checkpoints import CheckpointFolder
from state.eval_rewards import EvalRewardSummary
from state.trainer_state import TrainerState
from tests.orchestrator.training import losses_with, small_config
from tests.promises.acting import Act, trained

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


SCORES = EvalRewardSummary.from_simulations({("a", "b"): 2.0}, policy_version=1, epoch=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("eval_scores", SCORES), ("latest_checkpoint_uri", "file:///c"), ("latest_wandb_uri", "https://w")],
    ids=["eval_scores", "latest_checkpoint_uri", "latest_wandb_uri"],
)
async def test_what_a_hook_returns_is_in_the_states_from_then_on(field: str, value: object) -> None:
    update: dict[str, Any] = {field: value}
    final = await trained(Act(lambda state: StateUpdate(**update) if state.epoch == 1 else None), epochs=3)
    assert getattr(final, field) == value


async def test_a_result_says_what_it_speaks_of_and_reaches_the_losses(tmp_path: Path) -> None:
    class Reading(Loss):
        def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
            return evaluation.value.sum() * 0.0

        def on_epoch_end(self, state: TrainerState) -> None:
            with (tmp_path / "seen").open("a") as file:
                print(state.results and state.results["x"].value, file=file)  # pyright: ignore[reportAttributeAccessIssue]

    first = Act(lambda state: StateUpdate(results={"x": 1, "who": "first"}), "first")
    second = Act(lambda state: StateUpdate(results={"who": "second"}), "second")
    final = await trained(first, second, epochs=4, losses=losses_with(Reading()), backend="process")
    assert final.results is not None
    x: Any = final.results["x"]
    assert (x.value, x.hook, x.epoch, x.policy_version) == (1, "first", final.epoch, final.policy_version)
    who: Any = final.results["who"]
    assert who.value == "second", "for the same event the hook registered last has the last word"
    assert (tmp_path / "seen").read_text().split()[-1] == "1"


def in_callback(wish: Callable[[], object]) -> None:
    wish()


def in_thread(wish: Callable[[], object]) -> None:
    threading.Thread(target=wish).start()


WISHES: dict[str, Callable[[Hook], Callable[[], object]]] = {
    "stop": lambda hook: lambda: hook.run.stop("enough"),
    "stop_now": lambda hook: lambda: hook.run.stop_now("enough"),
    "pause and resume": lambda hook: lambda: (hook.run.pause(), hook.run.resume(), hook.run.stop("enough")),
}


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("where", [in_callback, in_thread])
async def test_a_hook_can_stop_pause_and_resume_the_run_from_anywhere(
    wish: str, where: Callable[[Callable[[], object]], None]
) -> None:
    hook = Act(lambda state: where(WISHES[wish](hook)) if state.epoch == 2 else None)
    with anyio.fail_after(100):
        async with Trainer(small_config(epochs=10**6), hooks=[hook]).start() as run:
            final = await run.result()
    assert run.stop_reason == "enough"
    assert final.epoch >= 2
    assert hook.run is run
    assert set(hook.run.hook_statistics()) == {"act"}


@pytest.mark.parametrize("how", ["save_now", "request_checkpoint"])
async def test_a_hook_can_ask_for_a_checkpoint(how: str, tmp_path: Path) -> None:
    def ask(state: TrainerState) -> StateUpdate | None:
        if state.epoch != 2:
            return None
        if how == "save_now":
            return StateUpdate(save_now=True)
        hook.run.request_checkpoint()
        return None

    hook = Act(ask)
    saved = CheckpointsConfig(every=1000, keep=0)
    final = await trained(hook, epochs=8, run_dir=tmp_path / "run", checkpoints=saved)
    assert hook.run.run_dir == tmp_path / "run"
    between, last = (int(path.name) for path in CheckpointFolder(tmp_path / "run" / "checkpoints").list())
    assert 2 < between < last == final.epoch


@pytest.mark.parametrize("how", ["save_now", "request_checkpoint"])
@pytest.mark.parametrize("folder", [True, False])
async def test_where_nothing_saves_the_run_the_log_says_that_no_checkpoint_is_taken(
    how: str, folder: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def ask(state: TrainerState) -> StateUpdate | None:
        if how == "request_checkpoint":
            hook.run.request_checkpoint()
        return StateUpdate(save_now=how == "save_now")

    hook = Act(ask)
    run_dir = tmp_path / "run" if folder else None
    await trained(hook, epochs=4, run_dir=run_dir, checkpoints=CheckpointsConfig(enabled=False))
    (line,) = [record.getMessage() for record in caplog.records if "requested" in record.getMessage()]
    assert "none will be taken" in line
    assert ("set checkpoints.enabled" if folder else "set run_dir") in line


async def test_a_hook_can_stop_the_run_by_what_it_returns() -> None:
    final = await trained(Act(lambda state: StateUpdate(stop=state.epoch == 2)), epochs=10**6)
    assert 2 <= final.epoch < 10


async def test_a_hook_can_scale_the_learning_rate() -> None:
    rates: list[float] = []

    def scale(state: TrainerState) -> None:
        assert state.loss_stats is not None
        rates.append(state.loss_stats["learning_rate"])
        hook.run.scale_learning_rate(0.5)

    hook = Act(scale)
    await trained(hook, epochs=6)
    assert rates[-1] == pytest.approx(rates[0] / 2)


class Keeper:
    def __init__(self, start: int) -> None:
        self.total = start

    def add(self, number: int) -> int:
        self.total += number
        return self.total


async def test_a_worker_of_a_hook_keeps_an_object_between_calls() -> None:
    totals: list[int] = []

    class Adding(Hook):
        overflow = "block"
        on_error = "raise"

        async def on_new_training_run(self, state: TrainerState) -> None:
            self.worker = await self.run.open_worker("adding", Keeper, 10)

        async def on_epoch_end(self, state: TrainerState) -> None:
            totals.append(await self.worker.call("add", 1))

        async def on_training_end(self, state: TrainerState) -> None:
            await self.worker.aclose()

    final = await trained(Adding(), epochs=3)
    assert totals == list(range(11, 11 + final.epoch))
