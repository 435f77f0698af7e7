"""The hooks that come along, in real runs: metrics, checkpoints, evaluation, progress."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from rich.console import Console

from orchestrator import CheckpointsConfig, EvaluationConfig, Hook, HookFailed, Trainer
from orchestrator.checkpoints import CheckpointError, CheckpointFolder
from orchestrator.hooks.included.progress import ProgressHook
from tests.orchestrator.training import small_config, worker_processes

if TYPE_CHECKING:
    from pathlib import Path

    from state.eval_rewards import EvalRewardSummary
    from state.trainer_state import TrainerState

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


class EveryState(Hook):
    overflow = "block"
    max_lag = 100

    def __init__(self) -> None:
        self.states: list[TrainerState] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.states.append(dataclasses.replace(state, experience=None, policy=None))


async def test_the_metrics_say_what_the_states_said(tmp_path: Path) -> None:
    seen = EveryState()
    await Trainer(small_config(epochs=4, run_dir=tmp_path / "run"), hooks=[seen]).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(seen.states) > 0
    for line, state in zip(lines, seen.states, strict=True):
        assert state.rollout_stats is not None
        assert state.loss_stats is not None
        assert line["epoch"] == state.epoch
        assert line["agent_step"] == state.agent_step
        returns = state.rollout_stats["episode_return"]
        assert line["rollout/episode_return"] == pytest.approx(sum(returns) / len(returns))
        assert line["loss/ppo_actor/entropy"] == state.loss_stats["ppo_actor/entropy"]
    seconds = [line["time/seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert sum(line["time/epoch"] for line in lines) == pytest.approx(seconds[-1], rel=1e-6)


def saved_in(folder: Path) -> list[Path]:
    return CheckpointFolder(folder / "checkpoints").list()


async def test_checkpoints_are_taken_on_time_and_at_the_end(tmp_path: Path) -> None:
    checkpoints = CheckpointsConfig(every=4, keep=0)
    config = small_config(epochs=9, staleness=0, run_dir=tmp_path / "run", checkpoints=checkpoints)
    committed: list[str | None] = []
    trainer = Trainer(config)

    @trainer.on_checkpoint_committed(overflow="block")
    async def note(state: TrainerState) -> None:
        committed.append(state.latest_checkpoint_uri)

    final = await trainer.run()
    saved = saved_in(tmp_path / "run")
    epochs = [int(path.name) for path in saved]
    assert len(epochs) >= 2
    assert all(epoch % 4 == 0 for epoch in epochs[:-1]), "where the disk is slow a newer one replaces one that waits"
    assert epochs[-1] == final.epoch
    assert committed == [path.as_uri() for path in saved]
    assert final.latest_checkpoint_uri == saved[-1].as_uri()


async def test_a_checkpoint_is_taken_when_one_is_asked_for(tmp_path: Path) -> None:
    checkpoints = CheckpointsConfig(every=0)
    async with Trainer(small_config(epochs=10**6, run_dir=tmp_path / "run", checkpoints=checkpoints)).start() as run:
        run.request_checkpoint()
        async for state in run.states():
            if state.latest_checkpoint_uri is not None:
                run.stop()
    epochs = [int(path.name) for path in saved_in(tmp_path / "run")]
    assert len(epochs) == 2
    assert epochs[0] < epochs[1] == run.state.epoch


async def test_a_checkpoint_that_cannot_be_written_stops_the_run_with_its_cause(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = small_config(epochs=10_000, run_dir=folder, checkpoints=CheckpointsConfig(every=3))
    trainer = Trainer(config)

    @trainer.on_rollout_end(overflow="block")
    async def put_a_file_where_the_folder_should_be(state: TrainerState) -> None:
        if (folder / "checkpoints").is_dir():
            shutil.rmtree(folder / "checkpoints")
            (folder / "checkpoints").touch()

    with pytest.raises(HookFailed, match="'checkpoint' failed to handle") as caught:
        await trainer.run()
    assert isinstance(caught.value.__cause__, CheckpointError)
    assert isinstance(caught.value.__cause__.__cause__, OSError)


def evaluating(every: int = 1, **settings: Any) -> Any:
    return small_config(
        epochs=5, evaluation=EvaluationConfig(every=every, episodes=3, num_environments=2), staleness=0, **settings
    )


async def scores_of(config: Any) -> EvalRewardSummary:
    final = await Trainer(config).run()
    assert final.eval_scores is not None
    assert final.eval_scores.policy_version == final.policy_version == final.eval_scores.epoch
    return final.eval_scores


async def test_evaluations_are_of_a_known_version_and_repeat() -> None:
    first, second = await scores_of(evaluating(backend="process")), await scores_of(evaluating(backend="inline"))
    assert first == second
    assert first.avg_category_score is not None
    assert first.avg_category_score > 5


async def test_a_killed_evaluation_is_made_again_and_training_does_not_notice() -> None:
    config = dataclasses.replace(evaluating(every=2, backend="process"), total_agent_steps=10**9)
    trainer = Trainer(config)
    killed: list[int] = []

    @trainer.on_epoch_end(overflow="block", after=("evaluation",))
    def kill_the_evaluator(state: TrainerState) -> None:
        if state.eval_scores is not None and not killed:
            # Collector and learner were started first; the evaluator is the newest worker.
            killed.append(max(worker_processes(), key=lambda pid: psutil.Process(pid).create_time()))
            os.kill(killed[0], signal.SIGKILL)

    async with trainer.start() as run:
        async for state in run.states():
            evaluation = run.hook_statistics()["evaluation"]
            if evaluation.retried and evaluation.handled > 2:
                assert state.eval_scores is not None
                assert evaluation.failed == 0
                run.stop()
    assert killed


async def test_progress_in_plain_lines_names_what_matters() -> None:
    output = io.StringIO()
    hook = ProgressHook(640, "auto", Console(file=output, width=200))
    hook.overflow = "block"  # or else it may skip the first epoch where the training is quick
    final = await Trainer(small_config(epochs=5), hooks=[hook]).run()
    first, *_, last = output.getvalue().splitlines()
    assert first.startswith("epoch 1 ")
    assert last.startswith(f"epoch {final.epoch} ")
    for name in ("steps", "rate", "left", "return", "entropy"):
        assert f" {name} " in last


async def test_the_live_view_shows_the_same_and_leaves_the_terminal_as_it_was() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100, height=30)
    await Trainer(small_config(epochs=5), hooks=[ProgressHook(640, "live", console)]).run()
    text = output.getvalue()
    assert "\x1b[?25l" in text, "the cursor is hidden"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "and shown again"
