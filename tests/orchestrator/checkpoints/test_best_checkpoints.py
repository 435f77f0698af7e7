"""`keep_best` keeps the checkpoint of the policy that scored best, however late the scores come."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from orchestrator import CheckpointsConfig, ConfigurationError, EvaluationConfig, Hook, StateUpdate, Trainer
from orchestrator.checkpoints import CheckpointFolder, KeepAny, KeepBest, KeepLast
from orchestrator.checkpoints.checkpoint import open_checkpoint
from orchestrator.checkpoints.objects import Objects
from orchestrator.checkpoints.remote import RemoteCheckpoints
from orchestrator.command.checkpoints import run_command
from orchestrator.hooks.included.best_metric import check_best_metric
from orchestrator.hooks.runner import HookFailed
from state.eval_rewards import EvalRewardSummary
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from pathlib import Path

    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow


@pytest.fixture
def anyio_backend() -> str:
    """Scores are the same in every event loop."""
    return "asyncio"


BEST = 3


class LateScores(Hook):
    """Scores every policy, the best of all being that of version 3, when the training is two epochs further."""

    name = "late_scores"
    overflow = "block"
    max_lag = 100

    def __init__(self) -> None:
        self.newest = 0
        self.over = False

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate:
        with anyio.fail_after(120):
            while self.newest < state.epoch + 2 and not self.over:
                await anyio.sleep(0.01)
        return StateUpdate(
            eval_scores=EvalRewardSummary(category_scores={"a": -float(abs(state.policy_version - BEST))})
        )


class Watch(Hook):
    overflow = "block"

    def __init__(self, scores: LateScores) -> None:
        self.scores = scores
        self.saved: list[int] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.scores.newest = state.epoch

    async def on_checkpoint_committed(self, state: TrainerState) -> None:
        self.saved.append(state.epoch)


@pytest.mark.anyio
async def test_the_best_policys_checkpoint_is_kept_although_its_score_comes_late(tmp_path: Path) -> None:
    checkpoints = CheckpointsConfig(every=1, keep=1, keep_best=1, best_metric="eval/score")
    config = small_config(total_agent_steps=10**9, run_dir=tmp_path, checkpoints=checkpoints)
    scores = LateScores()
    watch = Watch(scores)
    async with Trainer(config, hooks=[scores, watch]).start() as run:
        async for state in run.states():
            if state.epoch >= 8:
                run.stop()
                scores.over = True
    found = [open_checkpoint(path) for path in CheckpointFolder(tmp_path / "checkpoints").list()]
    best = min(watch.saved, key=lambda epoch: (abs(epoch - BEST), -epoch))  # not every epoch is saved by a busy machine
    assert [checkpoint.epoch for checkpoint in found] == [best, run.state.epoch]
    for checkpoint in found:
        version = checkpoint.manifest["policy_version"]
        assert checkpoint.metrics["eval/score"] == -abs(version - BEST)
        assert checkpoint.manifest["metrics"].get("eval/policy_version", version) == version


@pytest.mark.parametrize(
    ("name", "evaluation", "nearest"),
    [
        ("rollout/typo", 0, "did you mean rollout/"),
        ("eval/scores", 2, "eval/score"),
        ("overview/score", 0, "did you mean overview/"),
        ("eval/score", 0, "use one of"),
    ],
)
@pytest.mark.anyio
async def test_a_best_metric_that_never_appears_is_an_error_at_the_first_checkpoint(
    name: str, evaluation: int, nearest: str, tmp_path: Path
) -> None:
    config = small_config(
        epochs=20,
        run_dir=tmp_path,
        checkpoints=CheckpointsConfig(every=2, keep_best=1, best_metric=name),
        evaluation=EvaluationConfig(every=evaluation, episodes=1),
    )
    with pytest.raises(HookFailed) as caught:
        await Trainer(config).run()
    assert "checkpoints.best_metric" in str(caught.value.__cause__)
    assert nearest in str(caught.value.__cause__)
    newest = CheckpointFolder(tmp_path / "checkpoints").newest_valid()
    assert newest.epoch < 20


@pytest.mark.parametrize(
    ("name", "evaluation", "nearest"),
    [
        ("rollout/recent_retrun", 0, "did you mean rollout/recent_return"),
        ("rolout/recent_return", 0, "did you mean rollout/recent_return"),
        ("recent_return", 0, "did you mean rollout/recent_return"),
        ("return", 0, "use one of epoch"),
        ("eval/scor", 2, "did you mean eval/score"),
        ("overview/return", 0, "did you mean overview/reward"),
        ("policy/entropies", 0, "did you mean policy/entropy"),
        ("policy/weight_norm", 0, "did you mean policy/"),
    ],
)
def test_a_best_metric_that_there_is_not_is_refused_before_the_start(
    name: str, evaluation: int, nearest: str, tmp_path: Path
) -> None:
    checkpoints = CheckpointsConfig(keep_best=1, best_metric=name)
    evaluate = EvaluationConfig(every=evaluation)
    with pytest.raises(ConfigurationError) as caught:
        Trainer(small_config(run_dir=tmp_path / "run", checkpoints=checkpoints, evaluation=evaluate))
    (problem,) = caught.value.problems
    assert problem.field == "checkpoints.best_metric"
    assert nearest in problem.cure
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["rollout/episode_0_return", "rollout/episode_returns", "loss/mine/x", "eval/of mine"])
def test_a_best_metric_that_environments_losses_and_hooks_may_give_is_not_refused(name: str, tmp_path: Path) -> None:
    checkpoints = CheckpointsConfig(keep_best=1, best_metric=name)
    Trainer(small_config(run_dir=tmp_path / "run", checkpoints=checkpoints))


@pytest.mark.parametrize("name", ["eval/score", "overview/score", "rollout/recent_return", "policy/entropy"])
@pytest.mark.anyio
async def test_a_best_metric_that_comes_is_no_error(name: str, tmp_path: Path) -> None:
    config = small_config(
        epochs=3,
        run_dir=tmp_path,
        checkpoints=CheckpointsConfig(every=1, keep_best=1, best_metric=name),
        evaluation=EvaluationConfig(every=1, episodes=1),
    )
    await Trainer(config).run()
    there = CheckpointFolder(tmp_path / "checkpoints").newest_valid().metrics
    assert there[name] is not None
    for one in there:
        check_best_metric(one, ())


def commit(folder: CheckpointFolder, epoch: int) -> Path:
    facts = {"policy_version": epoch, "metrics": {"epoch": epoch}}
    return folder.commit(epoch=epoch, facts=facts, files={"policy.safetensors": b"weights"})


def test_scores_that_come_late_reach_the_copy_in_a_store_and_rule_there_too(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    remote = RemoteCheckpoints(Objects((tmp_path / "store").as_uri()))
    paths = [commit(folder, epoch) for epoch in (1, 2, 3)]
    for path in paths:
        remote.upload(path)
        assert not remote.upload_scores(path)
    assert folder.score({1: {"eval/score": 2.0}, 2: {"eval/score": 1.0}}) == paths[:2]
    assert [remote.upload_scores(path) for path in paths] == [True, True, False]
    assert remote.open("00000001").metrics == {"epoch": 1, "eval/score": 2.0}
    assert remote.prune(KeepAny((KeepLast(1), KeepBest(1, "eval/score")))) == ["00000002"]
    assert remote.download("00000001", tmp_path / "cache").metrics["eval/score"] == 2.0
    assert remote.list() == ["00000001", "00000003"]


def test_damaged_scores_are_left_out_and_harm_no_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = CheckpointFolder(tmp_path)
    path = commit(folder, 1)
    folder.score({1: {"eval/score": 2.0}})
    assert run_command(["show", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["eval/score"] == 2.0
    contents: list[Any] = [b"", b"{", b"[]", b'{"attempt": "another", "metrics": {}}', b"\xff"]
    for content in contents:
        (path / "scores.json").write_bytes(content)
        caplog.clear()
        assert folder.newest_valid().metrics == {"epoch": 1}
        assert "scores.json is damaged" in caplog.text
