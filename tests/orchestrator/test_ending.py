"""How runs end: finished, stopped, failed or cancelled, also where hooks hang or hoard."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from losses import Loss
from orchestrator import CheckpointsConfig, Hook, HookFailed, StateUpdate, Trainer
from orchestrator.checkpoints import find_checkpoint
from orchestrator.learning.optimization import NonFiniteLossError
from orchestrator.run import RunCancelled
from orchestrator.workers.worker import WorkerCrashed
from tests.orchestrator.training import FailingLoss, losses_with, small_config

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from losses import Minibatch, PolicyEvaluation
    from state.trainer_state import TrainerState

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


class Hanging(Hook):
    """Never comes back, and the training waits for it."""

    overflow = "block"
    max_lag = 1

    def __init__(self) -> None:
        self.hangs = anyio.Event()

    async def on_rollout_end(self, state: TrainerState) -> None:
        self.hangs.set()
        await anyio.sleep_forever()


class LastEvents(Hook):
    overflow = "block"
    max_lag = 100

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def on_rollout_end(self, state: TrainerState) -> None:
        self.seen.append(f"rollout {state.epoch}")

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.seen.append(f"epoch {state.epoch - 1}")

    async def on_training_end(self, state: TrainerState) -> None:
        self.seen.append("end")

    async def on_failure(self, state: TrainerState) -> None:
        self.seen.append("failure")


@pytest.mark.parametrize("staleness", [0, 1, 4])
async def test_stop_now_ends_a_run_that_waits_for_a_hanging_hook(staleness: int) -> None:
    hook = Hanging()
    with anyio.fail_after(60):
        async with Trainer(small_config(epochs=10**6, staleness=staleness), hooks=[hook]).start() as run:
            await hook.hangs.wait()
            run.stop_now()
            run.limit_drain(0.1)


async def test_a_run_says_which_hooks_its_end_waits_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.trainer.TOLD_AFTER", 0.01)

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "the run waits" in record.getMessage():
                hook.goes_on.set()

    class Waiting(Hook):
        goes_on = anyio.Event()

        async def on_epoch_end(self, state: TrainerState) -> None:
            await self.goes_on.wait()

    hook, told = Waiting(), Told()
    logging.getLogger("orchestrator").addHandler(told)
    try:
        with anyio.fail_after(60):
            await Trainer(small_config(epochs=2), hooks=[hook]).run()
    finally:
        logging.getLogger("orchestrator").removeHandler(told)
    said = [text for text in caplog.messages if text.startswith("the training is over; the run waits up to")]
    assert said
    assert all(text.endswith("s more for hooks: waiting") for text in said)


async def test_a_run_waits_for_hooks_as_long_as_its_settings_say(caplog: pytest.LogCaptureFixture) -> None:
    hook = Hanging()
    hook.overflow = "coalesce"
    with anyio.fail_after(60):
        await Trainer(dataclasses.replace(small_config(epochs=2), drain_timeout=0.2), hooks=[hook]).run()
    assert (
        "these hooks have not finished within 0.2 s after the training, and are ended: hanging; drain_timeout says how"
        " long they may take"
    ) in caplog.messages


@pytest.mark.parametrize("staleness", [0, 4])
async def test_a_failed_run_ends_although_a_hook_hangs(staleness: int) -> None:
    losses = losses_with(FailingLoss("raise"))
    hook = Hanging()
    # Full with the rollout of epoch 5, for which epoch 0 must have been learned: nothing keeps the learner from
    # epoch 1, in which it fails, while the collect task waits for the hook.
    hook.max_lag = 4
    with anyio.fail_after(60), pytest.raises(ArithmeticError, match="gave up"):
        async with Trainer(small_config(epochs=10**6, staleness=staleness), hooks=[hook], losses=losses).start() as run:
            run.limit_drain(0.1)
            await run.result()


async def test_a_hook_that_ends_the_run_at_once_leaves_the_others_their_last_event() -> None:
    class Raising(Hook):
        on_error = "raise"

        async def on_epoch_end(self, state: TrainerState) -> None:
            raise RuntimeError("no")

    last = LastEvents()
    with pytest.raises(HookFailed):
        await Trainer(small_config(epochs=10**6), hooks=[Raising(), last]).run()
    assert last.seen[-1] == "failure"


@pytest.mark.parametrize("staleness", [0, 1, 3])
async def test_a_stopped_run_finishes_every_epoch_that_it_has_begun(staleness: int) -> None:
    class StopEarly(Hook):
        overflow = "block"

        async def on_rollout_end(self, state: TrainerState) -> StateUpdate | None:
            return StateUpdate(stop=True) if state.epoch == 2 else None

    last = LastEvents()
    final = await Trainer(small_config(epochs=10**6, staleness=staleness), hooks=[StopEarly(), last]).run()
    assert final.epoch >= 3
    assert last.seen[-1] == "end"
    for epoch in range(final.epoch):
        assert f"rollout {epoch}" in last.seen
        assert f"epoch {epoch}" in last.seen
    assert f"rollout {final.epoch}" not in last.seen


async def test_a_checkpoint_taken_while_a_run_is_paused_shows_in_its_state_at_once(tmp_path: Path) -> None:
    config = small_config(epochs=10**6, run_dir=tmp_path / "run", checkpoints=CheckpointsConfig(every=0))
    async with Trainer(config).start() as run:
        async for state in run.states():
            if state.epoch == 2:
                break
        run.pause()
        run.request_checkpoint()
        with anyio.fail_after(60):
            while run.state.latest_checkpoint_uri is None:
                await anyio.sleep(0.01)
            while run.state.latest_checkpoint_uri != f"{(tmp_path / 'run/checkpoints').as_uri()}/{run.state.epoch:08d}":
                run.request_checkpoint()  # the first one may have been of an epoch before the pause
                await anyio.sleep(0.01)
        run.resume()
        run.stop()


async def test_each_epoch_is_watched_once_with_checkpoints_too(tmp_path: Path) -> None:
    config = small_config(epochs=4, run_dir=tmp_path / "run", checkpoints=CheckpointsConfig(every=1))
    async with Trainer(config).start() as run:
        seen = [state.epoch async for state in run.states()]
    assert seen == sorted(set(seen))


class Hoarding(Hook):
    overflow = "block"

    def __init__(self) -> None:
        self.states: list[TrainerState] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.states.append(state)


async def test_the_last_checkpoint_is_written_although_a_hook_keeps_every_state(tmp_path: Path) -> None:
    config = small_config(epochs=20, run_dir=tmp_path / "run", checkpoints=CheckpointsConfig(every=0))
    final = await Trainer(config, hooks=[Hoarding()]).run()
    assert final.policy is not None
    assert find_checkpoint(tmp_path / "run").manifest["epoch"] == final.epoch


async def test_views_outlive_the_run() -> None:
    final = await Trainer(small_config()).run()
    assert final.experience is not None
    assert final.policy is not None
    assert final.experience.tensor("reward").sum() > 0
    assert final.policy.load() is not None


async def test_who_waits_for_a_cancelled_run_without_being_cancelled_is_told() -> None:
    told: list[str] = []

    async def wait(run: Any) -> None:
        try:
            await run.result()
        except RunCancelled as error:
            told.append(str(error))

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with Trainer(small_config(epochs=10**6)).start() as run:
                tasks.start_soon(wait, run)
                async for _ in run.states():
                    scope.cancel()
    assert told == ["the run was cancelled"]


async def test_the_first_epoch_learns_with_the_whole_learning_rate_and_the_last_with_some() -> None:
    config = small_config(epochs=4, staleness=0)
    config = dataclasses.replace(
        config, learning=dataclasses.replace(config.learning, learning_rate_schedule="linear", learning_rate=1e-3)
    )
    rates: list[float] = []
    trainer = Trainer(config)

    @trainer.on_epoch_end(overflow="block")
    async def note(state: TrainerState) -> None:
        assert state.loss_stats is not None
        rates.append(state.loss_stats["learning_rate"])

    await trainer.run()
    assert rates[0] == 1e-3
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


class FailingCallback(Loss):
    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        return evaluation.value.sum() * 0.0

    def on_rollout_end(self, state: TrainerState) -> None:
        if state.epoch == 1:
            raise ArithmeticError("the loss gave up")


@pytest.mark.parametrize(("staleness", "anyio_backend"), [(0, "asyncio"), (1, "trio")])
@pytest.mark.parametrize(("how", "every"), [("raise", 0), ("raise", 1), ("nan", 0), ("callback", 0), ("kill", 0)])
async def test_a_run_whose_learner_fails_saves_the_last_whole_epoch(
    how: str, every: int, staleness: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loss = FailingCallback() if how == "callback" else FailingLoss(how)
    config = small_config(
        epochs=10,
        staleness=staleness,
        run_dir=tmp_path / "run",
        checkpoints=CheckpointsConfig(every=every),
        backend="process" if how == "kill" else "inline",
    )
    with anyio.fail_after(60), pytest.raises((ArithmeticError, NonFiniteLossError, WorkerCrashed)):
        await Trainer(config, losses=losses_with(loss)).run()
    checkpoint = find_checkpoint(tmp_path / "run")
    assert checkpoint.manifest["epoch"] == 1
    assert checkpoint.manifest["resumable"] == (every == 1)
    if how == "raise" and every == 0:
        assert (await Trainer(resume=tmp_path / "run").run()).epoch == 10
        assert "the optimizer and all random generators start afresh" in caplog.text
