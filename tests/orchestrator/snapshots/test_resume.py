"""A run that was stopped and goes on is the run that was not stopped, bit for bit."""

from __future__ import annotations

import gc
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
import torch

from losses import Loss, ppo_losses
from orchestrator import CheckpointsConfig, ConfigurationError, Hook, LearningConfig, PolicyConfig, Trainer
from orchestrator.checkpoints import CheckpointError, CheckpointFolder, find_checkpoint
from orchestrator.checkpoints.checkpoint import open_checkpoint
from orchestrator.snapshots.checkpoint_files import read_checkpoint
from orchestrator.snapshots.resume import find_resume_source, resume_problems
from tests.orchestrator.training import WaitForCheckpoints, losses_with, small_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from losses import Minibatch, PolicyEvaluation
    from losses.callback import StateValue
    from orchestrator import TrainerConfig
    from state.trainer_state import TrainerState

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    """What a checkpoint holds is the same in every event loop; that it is taken in each, some tests show."""
    return "asyncio"


in_every_event_loop = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


def config_in(folder: Path, *, epochs: int = 7, every: int = 3, **settings: Any) -> TrainerConfig:
    return small_config(epochs=epochs, run_dir=folder, checkpoints=CheckpointsConfig(every=every, keep=0), **settings)


def for_epochs(config: TrainerConfig, epochs: int) -> TrainerConfig:
    # The steps that only reset an environment do not count.
    return replace(config, total_agent_steps=(epochs - 1) * config.steps_per_epoch + 1)


def assert_same(first: TrainerState, second: TrainerState) -> None:
    assert first.policy is not None
    assert second.policy is not None
    assert (first.epoch, first.agent_step, first.policy_version) == (
        second.epoch,
        second.agent_step,
        second.policy_version,
    )
    for name, array in first.policy.tensors.items():
        assert np.array_equal(array, second.policy.tensors[name]), name
    assert first.loss_stats == second.loss_stats
    assert first.stats_tracker == second.stats_tracker


NORMALISED = PolicyConfig(hidden_sizes=(8,), normalize_observations=True, normalize_rewards=True)
RECURRENT = PolicyConfig(network="lstm", hidden_sizes=(8,), lstm_size=4)


@pytest.mark.parametrize(
    ("anyio_backend", "staleness", "settings"),
    [
        ("asyncio", 0, {}),
        ("trio", 1, {}),
        ("asyncio", 3, {}),
        ("trio", 0.25, {"epochs": 10}),
        ("asyncio", 1.5, {"epochs": 10}),
        ("trio", 1, {"policy": NORMALISED}),
        ("asyncio", 1, {"policy": RECURRENT}),
        ("trio", 0, {"collectors": 2}),
        ("asyncio", 1, {"backend": "process"}),
        ("trio", 1, {"backend": "process"}),
        ("trio", 0, {"environment": "tests.environments:make_counting"}),
    ],
)
async def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    tmp_path: Path, staleness: float, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = config_in(tmp_path / "whole", staleness=staleness, **settings)
    whole = await Trainer(config, hooks=[WaitForCheckpoints(config)]).run()

    stopped = replace(config, run_dir=tmp_path / "stopped")
    epochs = 7 if staleness % 1 else 4  # a fraction counts from the seventh on
    part = await Trainer(for_epochs(stopped, epochs)).run()
    assert part.epoch == epochs
    goes_on = await Trainer(stopped, resume=tmp_path / "stopped").run()
    assert_same(whole, goes_on)

    # As after a crash: from what was saved while the training went on.
    branch = replace(config, run_dir=tmp_path / "branch")
    saved = tmp_path / "whole" / "checkpoints" / ("00000006" if staleness % 1 else "00000003")
    assert_same(whole, await Trainer(branch, resume=saved).run())
    assert "resumed, but" not in caplog.text


@in_every_event_loop
async def test_a_run_stopped_by_hand_resumes_exactly(tmp_path: Path) -> None:
    config = config_in(tmp_path / "whole", epochs=9, every=0)
    whole = await Trainer(config).run()
    stopped = replace(config, run_dir=tmp_path / "stopped")
    async with Trainer(stopped).start() as run:
        async for _ in run.states():
            run.stop()
    assert run.state.epoch < 9
    assert_same(whole, await Trainer(resume=tmp_path / "stopped").run())


@in_every_event_loop
async def test_a_checkpoint_that_was_asked_for_can_be_resumed_from(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", epochs=12, every=0)
    async with Trainer(config).start() as run:
        run.request_checkpoint()
        whole = await run.result()
    first, _ = CheckpointFolder(tmp_path / "run" / "checkpoints").list()
    branch = replace(config, run_dir=tmp_path / "branch")
    assert_same(whole, await Trainer(branch, resume=first).run())


@pytest.mark.parametrize(("anyio_backend", "staleness"), [("asyncio", 0), ("trio", 1), ("asyncio", 3), ("trio", 0.5)])
async def test_a_paused_run_can_be_saved_and_gone_on_with_elsewhere(tmp_path: Path, staleness: float) -> None:
    config = config_in(tmp_path / "run", epochs=18, every=0, staleness=staleness)
    checkpoints = CheckpointFolder(tmp_path / "run" / "checkpoints")
    async with Trainer(config).start() as run:
        async for state in run.states():
            if state.epoch == 7:
                run.pause()
                break
        for times in (1, 2):  # the second finds the epoch saved
            run.request_checkpoint()
            with anyio.fail_after(60):
                while run.hook_statistics()["checkpoint"].handled < 1 + times:  # the first is of the beginning
                    await anyio.sleep(0.02)
        (saved,) = checkpoints.list()
        assert int(saved.name) == run.state.epoch < 18
        run.resume()
        whole = await run.result()
    branch = replace(config, run_dir=tmp_path / "branch")
    assert_same(whole, await Trainer(branch, resume=saved).run())


class _PauseAndSave(Hook):
    """Once the first rollout has ended, which is then yet to be learned from."""

    overflow = "block"

    async def on_rollout_end(self, state: TrainerState) -> None:
        if state.epoch == 0:
            self.run.pause()
            self.run.request_checkpoint()


@pytest.mark.parametrize(("anyio_backend", "staleness"), [("asyncio", 0), ("trio", 1)])
async def test_a_run_that_is_paused_in_its_first_epoch_is_saved_after_it(tmp_path: Path, staleness: int) -> None:
    config = config_in(tmp_path, epochs=14, every=0, staleness=staleness)
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    async with Trainer(config, hooks=[_PauseAndSave()]).start() as run:
        with anyio.fail_after(60):
            while len(checkpoints.list()) < 1:
                await anyio.sleep(0.02)
            run.scale_learning_rate(0.5)
            run.request_checkpoint()  # of the same epoch, but it would go on in another way
            while len(checkpoints.list()) < 2:
                await anyio.sleep(0.02)
        assert [path.name for path in checkpoints.list()] == [f"{run.state.epoch:08d}", f"{run.state.epoch:08d}-2"]
        scales = [read_checkpoint(open_checkpoint(path)).learning_rate_scale for path in checkpoints.list()]
        assert scales == [1.0, 0.5]
        run.stop()


@in_every_event_loop
async def test_a_run_that_still_goes_on_elsewhere_is_left_alone(tmp_path: Path) -> None:
    config = config_in(tmp_path, epochs=3)
    await Trainer(config).run()
    settings = (tmp_path / "config.toml").read_text()
    trainer = Trainer(for_epochs(config, 9), resume=tmp_path)
    with CheckpointFolder(tmp_path / "checkpoints").claim(), pytest.raises(CheckpointError, match="another run writes"):
        await trainer.run()
    assert (tmp_path / "config.toml").read_text() == settings


async def test_checkpoints_that_a_run_writes_while_it_is_to_be_resumed_are_to_stay_where_they_are(
    tmp_path: Path,
) -> None:
    await Trainer(config_in(tmp_path, epochs=7)).run()
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    source = find_resume_source(checkpoints.list()[0])  # which was the newest one when it was found
    config = replace(source.config, run_dir=tmp_path, total_agent_steps=10_000)
    source = replace(source, config=config)
    with checkpoints.claim():
        (problem,) = resume_problems(source, config)
    assert "to which no other run writes" in f"{problem}"
    assert "move" not in f"{problem}"
    (problem,) = resume_problems(source, config)  # that run has ended
    assert problem.cure.startswith(f"move {checkpoints.list()[-1]} elsewhere")


class _Pace(Hook):
    """Lets the training be ahead of the checkpoints by an epoch or two, no more."""

    after = ("checkpoint",)
    overflow = "block"
    max_lag = 1

    def __init__(self) -> None:
        self.slots: set[str] = set()

    def on_epoch_end(self, state: TrainerState) -> None:
        names = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        self.slots.update(name for name in names if "orchestrator-moments" in name)


class Hoarder(Hook):
    """Keeps every state, as metrics do that a slow disk holds up."""

    overflow = "block"

    def __init__(self) -> None:
        self.states: list[TrainerState] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.states.append(state)


async def test_checkpoints_are_whole_however_many_states_are_held(tmp_path: Path) -> None:
    config = config_in(tmp_path, epochs=6, every=2)
    config = replace(config, collection=replace(config.collection, held_epochs=2))
    hoarder = Hoarder()
    final = await Trainer(config, hooks=[hoarder]).run()
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert [open_checkpoint(path).epoch for path in folder.list()] == [2, 4, 6]
    held = {state.epoch: state.policy for state in hoarder.states}
    assert held[5] is None, "too many were held for a state that nobody saves"
    assert held[4] is not None
    assert_same(final, await Trainer(replace(config, run_dir=None)).run())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for the memory where Linux shows it")
async def test_memory_for_the_optimizers_state_is_used_again_once_it_is_saved(tmp_path: Path) -> None:
    gc.collect()  # what earlier tests have left
    pace = _Pace()
    await Trainer(config_in(tmp_path, epochs=14, every=4, backend="process"), hooks=[pace]).run()
    assert len(CheckpointFolder(tmp_path / "checkpoints").list()) >= 4
    assert len(pace.slots) == 1, pace.slots


@in_every_event_loop
async def test_a_run_cut_short_within_an_epoch_loses_only_its_episodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_in(tmp_path / "run", epochs=10**6, every=0)
    async with Trainer(config).start() as run:
        async for state in run.states():
            if state.epoch == 3:
                run.stop_now()
    source = find_resume_source(tmp_path / "run")
    point = read_checkpoint(source.checkpoint)
    assert point.state.epoch == run.state.epoch
    assert point.learner is not None
    # The epoch in which it stopped ends there: what was learned in it is kept.
    assert 4 * (run.state.epoch - 1) < point.learner.steps[0] <= 4 * run.state.epoch
    final = await Trainer(for_epochs(config, run.state.epoch + 2), resume=source).run()
    assert final.epoch == run.state.epoch + 2
    if None in point.collectors:
        assert "cut short within an epoch" in caplog.text


class Remembering(Loss):
    """Its value depends on how often it was computed in all epochs, on its own noise and on torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.noise = torch.zeros(3)

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        self.calls += 1
        self.noise += 0.01
        return evaluation.value.mean() * (0.01 * self.calls + self.noise.sum()) * torch.rand(())

    def state_dict(self) -> dict[str, StateValue]:
        return {"calls": self.calls, "noise": self.noise}

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        self.calls = int(state["calls"])  # type: ignore[arg-type]
        self.noise = state["noise"]  # type: ignore[assignment]


async def test_losses_and_the_generators_of_the_learners_process_go_on(tmp_path: Path) -> None:
    config = config_in(tmp_path / "whole", backend="process")
    waiting = WaitForCheckpoints(config)
    whole = await Trainer(config, losses=losses_with(Remembering()), hooks=[waiting]).run()
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = Trainer(branch, losses=losses_with(Remembering()), resume=tmp_path / "whole" / "checkpoints" / "00000003")
    assert_same(whole, await resumed.run())


async def test_other_losses_are_refused(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", epochs=3)
    await Trainer(config, losses=losses_with(Remembering())).run()
    with pytest.raises(ValueError, match="saved state is of other losses.*remembering"):
        await Trainer(replace(config, total_agent_steps=10**4), losses=ppo_losses(), resume=tmp_path / "run").run()


class Counting(Hook):
    name = "counting"
    overflow = "block"

    def __init__(self) -> None:
        self.epochs: list[int] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.epochs.append(state.epoch)

    def state_dict(self) -> dict[str, object]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.epochs = list(state["epochs"])  # type: ignore[call-overload]


async def test_hooks_go_on_with_what_they_knew(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", epochs=3)
    await Trainer(config, hooks=[Counting()]).run()
    hook = Counting()
    await Trainer(for_epochs(config, 10), hooks=[hook], resume=tmp_path / "run").run()
    assert hook.epochs == list(range(1, 11))


async def test_the_learning_rate_that_a_hook_has_chosen_goes_on(tmp_path: Path) -> None:
    class Halve(Hook):
        overflow = "block"

        async def on_rollout_start(self, state: TrainerState) -> None:
            if state.epoch == 2:
                self.run.scale_learning_rate(0.5)

    rates: list[float] = []

    class Note(Hook):
        overflow = "block"

        async def on_epoch_end(self, state: TrainerState) -> None:
            assert state.loss_stats is not None
            rates.append(state.loss_stats["learning_rate"] / config.learning.learning_rate)

    config = config_in(tmp_path / "run", epochs=6, staleness=0)
    await Trainer(config, hooks=[Halve(), Note()]).run()
    assert rates[:2] == [1.0, 1.0]
    assert rates[-1] == 0.5
    rates.clear()
    await Trainer(for_epochs(config, 8), hooks=[Note()], resume=tmp_path / "run").run()
    assert rates == [0.5, 0.5]


async def test_time_and_epochs_go_on(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", epochs=4)
    first = await Trainer(config).run()
    seen: list[int] = []
    async with Trainer(for_epochs(config, 6), resume=tmp_path / "run").start() as run:
        seen.extend([state.epoch async for state in run.states()])
    assert seen[0] > first.epoch
    assert seen[-1] == 6
    assert run.state.timer is not None
    assert first.timer is not None
    assert run.state.timer.seconds > first.timer.seconds
    assert run.state.timer.laps == 6


async def test_an_environment_that_cannot_give_its_state_begins_new_episodes_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_in(tmp_path / "run", environment="tests.environments:make_opaque")
    await Trainer(for_epochs(config, 4)).run()
    with caplog.at_level(logging.WARNING):
        final = await Trainer(config, resume=tmp_path / "run").run()
    assert final.epoch == 7
    assert "episodes that were in progress begin again: the environment can't give its state" in caplog.text


async def test_what_may_change_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learning = LearningConfig(update_epochs=2, minibatches=2, learning_rate_schedule="linear")
    config = config_in(tmp_path / "run", learning=learning)
    await Trainer(for_epochs(config, 4)).run()
    changed = replace(config, collection=replace(config.collection, collectors=2))
    with caplog.at_level(logging.WARNING):
        assert (await Trainer(changed, resume=tmp_path / "run").run()).epoch == 7
    assert "with 2 collectors instead of 1: all episodes begin again" in caplog.text
    assert "linear learning-rate schedule is stretched" in caplog.text
    assert find_resume_source(tmp_path / "run").config.collection.collectors == 2
    with caplog.at_level(logging.WARNING):
        await Trainer(replace(for_epochs(changed, 9), run_dir=None), resume=tmp_path / "run").run()
    assert "resumed, but without a folder (run_dir): it saves no checkpoints" in caplog.text


async def test_what_may_not_change_is_refused_with_all_that_is_wrong(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", epochs=3)
    await Trainer(config).run()
    source = find_resume_source(tmp_path / "run")
    problems = resume_problems(source, replace(config, seed=7, staleness=0))
    assert {problem.field for problem in problems} == {"total_agent_steps", "seed", "staleness"}
    with pytest.raises(
        ConfigurationError, match=r"total_agent_steps(.|\n)*the run has ended: to train it further, more than"
    ):
        await Trainer(resume=tmp_path / "run").run()


async def test_a_policy_of_another_architecture_is_refused_tensor_by_tensor(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", epochs=3)
    await Trainer(config).run()
    source = find_resume_source(tmp_path / "run")
    other = replace(config, policy=PolicyConfig(hidden_sizes=(16,)), total_agent_steps=10**4)
    disguised = replace(source, config=replace(other, run_dir=source.config.run_dir))
    with pytest.raises(CheckpointError, match=r"float32\[4, 8\] there and float32\[4, 16\] here"):
        await Trainer(other, resume=disguised).run()


async def test_an_older_checkpoint_is_branched_off_in_a_folder_of_its_own(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run")
    await Trainer(config, hooks=[WaitForCheckpoints(config)]).run()
    old = tmp_path / "run" / "checkpoints" / "00000003"
    assert find_resume_source(old).config.run_dir is None
    with pytest.raises(ConfigurationError, match="holds no run yet"):
        await Trainer(config, resume=old).run()


async def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_in(tmp_path / "run")
    whole = await Trainer(config, hooks=[WaitForCheckpoints(config)]).run()
    *_, newest = CheckpointFolder(tmp_path / "run" / "checkpoints").list()
    damaged = newest / "optimizer.safetensors"
    damaged.write_bytes(bytes(reversed(damaged.read_bytes())))
    source = find_resume_source(tmp_path / "run")
    assert source.checkpoint.manifest["epoch"] == 6
    assert "DAMAGED" in caplog.text
    assert_same(whole, await Trainer(config, resume=source).run())


async def test_the_policy_alone_is_enough_to_go_on_with_a_new_optimizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_in(tmp_path / "run", epochs=3)
    await Trainer(config).run()
    checkpoint = find_checkpoint(tmp_path / "run")
    files = {name: checkpoint.read(name) for name in ("policy.safetensors", "config.toml")}
    facts = {"agent_step": checkpoint.manifest["agent_step"], "policy_version": 3}
    shutil.rmtree(tmp_path / "run")
    CheckpointFolder(tmp_path / "alone").commit(epoch=3, facts=facts, files=files)
    config = replace(for_epochs(config, 5), run_dir=tmp_path / "new")
    with caplog.at_level(logging.WARNING):
        final = await Trainer(config, resume=tmp_path / "alone").run()
    assert final.epoch == 5
    assert "the checkpoint holds the policy alone" in caplog.text
