"""A learner that dies is replaced by one that continues where it was, and the run ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
import torch
from torch import Tensor

from losses import Loss
from orchestrator import Hook, LearningConfig, LossesConfig, PolicyConfig, Trainer, TrainerConfig, WorkerCrashed
from orchestrator.workers.worker import open_worker
from tests.orchestrator.training import losses_with, small_config, worker_processes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from losses import Minibatch, PolicyEvaluation
    from state import TrainerState

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

EPOCHS = 12


class Dying(Loss):
    """Kills its process once in each of the `epochs`, at `moment`; its result depends on its own state and on global
    generators."""

    def __init__(self, folder: Path, epochs: tuple[int, ...] = (), moment: str = "compute", keeps: bool = True) -> None:
        super().__init__()
        self._folder, self._epochs, self._moment = folder, epochs, moment
        self.steps = 0
        self.kept: Any = None if keeps else object()

    def _may_die(self, moment: str, epoch: int) -> None:
        if moment == self._moment and epoch in self._epochs:
            marker = self._folder / f"died-{epoch}"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        if minibatch.update_epoch == 1:
            self._may_die("compute", minibatch.epoch)
        self.steps += 1
        weight = 0.01 * random.random() + 0.01 * float(np.random.rand()) + 0.01 * float(torch.rand(()))
        return weight / self.steps * evaluation.value.square().mean()

    def on_rollout_start(self, state: TrainerState) -> None:
        self._may_die("on_rollout_start", state.epoch)

    def on_epoch_end(self, state: TrainerState) -> None:
        self._may_die("on_epoch_end", state.epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps} if self.kept is None else {"kept": self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


def config_for(**settings: Any) -> TrainerConfig:
    return small_config(epochs=EPOCHS, backend="process", **settings)


async def trained(config: TrainerConfig, loss: Loss, hooks: tuple[Hook, ...] = ()) -> tuple[TrainerState, Trainer]:
    trainer = Trainer(config, losses=losses_with(loss), hooks=hooks)
    with anyio.fail_after(200):
        return await trainer.run(), trainer


def weights(state: TrainerState) -> list[np.ndarray[Any, Any]]:
    assert state.policy is not None
    return [np.array(tensor) for tensor in state.policy.tensors.values()]


def assert_same(one: TrainerState, other: TrainerState) -> None:
    assert one.epoch == other.epoch
    assert one.agent_step == other.agent_step
    for mine, others in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(mine, others)


@pytest.mark.parametrize(
    ("anyio_backend", "settings"),
    [
        ("asyncio", {"staleness": 0}),
        ("trio", {"staleness": 1}),
        ("asyncio", {"staleness": 0.5}),
        ("trio", {"policy": PolicyConfig(network="lstm", lstm_size=4)}),
        ("asyncio", {"learning": LearningConfig(update_epochs=2, minibatches=2, priority_exponent=0.8)}),
    ],
    ids=["in turn", "overlapping", "half an epoch", "lstm", "prioritised"],
)
async def test_a_run_whose_learner_is_killed_ends_with_the_bits_of_an_undisturbed_one(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(**settings)
    undisturbed, _ = await trained(config, Dying(tmp_path))
    replaced, trainer = await trained(config, Dying(tmp_path, (0, 7)))
    assert_same(undisturbed, replaced)
    assert trainer.statistics().workers["learner"].restarts == 2
    assert "'learner' died during 'learn': killed by SIGKILL" in caplog.text
    assert "starting it again (1 of 3) within an hour: it continues with the policy of epoch 0" in caplog.text
    assert "starting it again (2 of 3) within an hour: it continues with the policy of epoch 7" in caplog.text
    assert "optimizer" not in caplog.text
    assert not worker_processes()


@pytest.mark.parametrize(
    ("anyio_backend", "moment", "staleness"), [("asyncio", "on_rollout_start", 0), ("trio", "on_epoch_end", 1)]
)
async def test_it_may_die_in_a_callback(moment: str, staleness: int, tmp_path: Path) -> None:
    config = config_for(staleness=staleness)
    undisturbed, _ = await trained(config, Dying(tmp_path))
    replaced, _ = await trained(config, Dying(tmp_path, (3,), moment))
    assert (tmp_path / "died-3").exists()
    assert_same(undisturbed, replaced)


async def test_every_hook_sees_each_epoch_once(tmp_path: Path) -> None:
    seen: list[int] = []

    class Seeing(Hook):
        overflow = "block"

        async def on_epoch_end(self, state: TrainerState) -> None:
            seen.append(state.epoch)

    final, _ = await trained(config_for(), Dying(tmp_path, (2, 3)), (Seeing(),))
    assert seen == list(range(1, final.epoch + 1))


async def test_what_is_saved_afterwards_can_be_resumed_from_exactly(tmp_path: Path) -> None:
    def saving(name: str) -> TrainerConfig:
        config = config_for(run_dir=tmp_path / name)
        return dataclasses.replace(config, checkpoints=dataclasses.replace(config.checkpoints, every=1))

    undisturbed, _ = await trained(saving("undisturbed"), Dying(tmp_path))
    await trained(saving("replaced"), Dying(tmp_path, (4,)))
    more = dataclasses.replace(saving("replaced"), total_agent_steps=2 * undisturbed.agent_step)
    resumed = Trainer(more, losses=losses_with(Dying(tmp_path)), resume=tmp_path / "replaced")
    straight = Trainer(
        dataclasses.replace(more, run_dir=tmp_path / "undisturbed"),
        losses=losses_with(Dying(tmp_path)),
        resume=tmp_path / "undisturbed",
    )
    with anyio.fail_after(200):
        assert_same(await straight.run(), await resumed.run())


@pytest.mark.parametrize(
    ("anyio_backend", "constant", "value", "said"),
    [
        ("asyncio", "BYTES_PER_EPOCH", 1, "with the optimizer as it was after epoch"),
        ("trio", "MOST_BYTES", 0, "after epoch 0"),
    ],
)
async def test_of_a_large_policy_the_optimizers_state_may_be_older(
    constant: str,
    value: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(f"orchestrator.loop.learners.{constant}", value)
    final, _ = await trained(config_for(), Dying(tmp_path, (5,)))
    assert final.epoch >= EPOCHS
    assert f"it continues with the policy of epoch 5, {said if said.startswith('with') else ''}" in caplog.text
    assert said in caplog.text


async def test_a_learner_that_keeps_dying_fails_the_run_and_saves_the_last_whole_epoch(tmp_path: Path) -> None:
    config = config_for(run_dir=tmp_path / "run")
    with pytest.raises(
        WorkerCrashed, match=r"'learner' died during 'learn': killed by SIGKILL.*4 times within an hour"
    ):
        await trained(config, Dying(tmp_path, (2, 3, 4, 5)))
    assert (tmp_path / "run" / "checkpoints" / "00000005").is_dir()
    assert not worker_processes()


async def test_a_loss_whose_state_cannot_be_had_is_why_the_learner_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(WorkerCrashed, match="'learner' died during 'learn'.*can't be replaced.*dying"):
        await trained(config_for(), Dying(tmp_path, (3,), keeps=False))


async def test_v_trace_and_its_normalizers_continue_too(tmp_path: Path) -> None:
    names = ("vtrace_actor", "vtrace_critic", "tests.orchestrator.test_learner_replaced:dying")
    policy = PolicyConfig(hidden_sizes=(8,), normalize_rewards=True, normalize_observations=True)
    config = config_for(losses=LossesConfig(names=names), policy=policy)
    found: list[TrainerState] = []
    for epochs in ("", "6"):
        os.environ["DYING"] = f"{tmp_path}:{epochs}"
        with anyio.fail_after(200):
            found.append(await Trainer(config).run())
    assert (tmp_path / "died-6").exists()
    assert_same(*found)


def dying() -> Loss:
    folder, _, epochs = os.environ["DYING"].partition(":")
    return Dying(Path(folder), tuple(map(int, epochs.split())))


async def test_one_that_dies_while_it_starts_is_replaced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started = 0

    async def opened(backend: Any, name: str, *args: Any, **options: Any) -> Any:
        nonlocal started
        started += name == "learner"
        worker = await open_worker(backend, name, *args, **options)
        if name == "learner" and started == 2:
            await worker.aclose(0)
            raise WorkerCrashed("worker 'learner' died during '__construct__'")
        return worker

    monkeypatch.setattr("orchestrator.loop.worker_group.open_worker", opened)
    undisturbed, _ = await trained(config_for(), Dying(tmp_path))
    started = 0
    replaced, _ = await trained(config_for(), Dying(tmp_path, (4,)))
    assert started == 3
    assert "starting it again (2 of 3)" in caplog.text
    assert "outside of its state (state_dict" in caplog.text
    assert_same(undisturbed, replaced)


async def test_a_run_that_ends_at_once_after_the_learner_has_died_in_a_pause_saves_the_policy(tmp_path: Path) -> None:
    before = worker_processes()
    trainer = Trainer(config_for(run_dir=tmp_path / "run"), losses=losses_with(Dying(tmp_path)))
    with anyio.fail_after(200):
        async with trainer.start() as run:
            await run.next_state(None)
            run.pause()
            while any(one.state == "busy" for one in run.statistics().workers.values()):
                await anyio.sleep(0.05)
            for pid in worker_processes() - before:
                os.kill(pid, signal.SIGKILL)  # collectors too
            run.stop_now()
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
