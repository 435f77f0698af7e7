"""Evaluation on environments of its own: real runs, real workers, real kills."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import subprocess
from typing import TYPE_CHECKING, Any

import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orchestrator import EvaluationConfig, EvaluationTask, Hook, Trainer, TrainerConfig
from orchestrator.__main__ import main
from orchestrator.checks.configuration import check_config
from orchestrator.config.error import ConfigurationError
from orchestrator.config.settings import CollectionConfig, MetricsConfig
from orchestrator.environments import InvalidEnvironment
from orchestrator.environments.compatibility import space_differences
from orchestrator.evaluation import evaluator
from orchestrator.evaluation.plan import EvaluationPlan, evaluation_plans, spaces_of
from orchestrator.evaluation.video import video_names
from orchestrator.hooks.included.evaluation import EvaluationHook
from orchestrator.policies import build_policy
from tests import evaluated_environments
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow

COUNTING = "tests.environments:make_counting"
DRAWING = "tests.evaluated_environments:make_drawing"
WAITING = "tests.evaluated_environments:make_waiting"
FAILING = "tests.orchestrator.training:failing_environment"

on_asyncio_and_trio = pytest.mark.anyio


class EveryState(Hook):
    overflow = "block"
    max_lag = 1000

    def __init__(self) -> None:
        self.states: list[TrainerState] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.states.append(dataclasses.replace(state, experience=None, policy=None))


def evaluating(*tasks: EvaluationTask, every: int = 1, video_every: int = 0, **settings: Any) -> TrainerConfig:
    evaluation = EvaluationConfig(every=every, episodes=3, num_environments=2, tasks=tasks, video_every=video_every)
    return small_config(**{"epochs": 4, "staleness": 0, "evaluation": evaluation} | settings)


# What a configuration asks for.


def test_without_tasks_the_environment_of_the_training_is_evaluated_on() -> None:
    config = TrainerConfig(collection=CollectionConfig(environment_options={"sutton_barto_reward": True}))
    (plan,) = evaluation_plans(config)
    assert plan == EvaluationPlan(
        environment="CartPole-v1",
        episodes=10,
        copies=4,
        seed=1_000_000,
        deterministic=True,
        options={"sutton_barto_reward": True},
    )
    assert plan.key == ("training", "CartPole-v1")


def test_a_task_has_what_it_does_not_say_from_the_evaluation_and_the_training() -> None:
    tasks = (
        EvaluationTask(),
        EvaluationTask(name="own", category="hard", options={}, episodes=2, seed=0, deterministic=True),
        EvaluationTask(environment="Acrobot-v1"),
    )
    config = TrainerConfig(
        collection=CollectionConfig(environment_options={"sutton_barto_reward": True}),
        evaluation=EvaluationConfig(tasks=tasks, episodes=7, seed=5, deterministic=False),
    )
    same, own, other = evaluation_plans(config)
    assert (same.key, same.options) == (("tasks", "CartPole-v1"), {"sutton_barto_reward": True})
    assert (same.episodes, same.seed, same.deterministic) == (7, 5, False)
    assert (own.key, own.options) == (("hard", "own"), {})
    assert (own.episodes, own.seed, own.deterministic) == (2, 0, True)
    assert (other.key, other.options) == (("tasks", "Acrobot-v1"), {}), "another environment has options of its own"


# What keeps it from starting.


def problems_of(config: TrainerConfig) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        check_config(config)
    return {problem.field: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_an_environment_with_other_spaces_is_named_with_that_of_the_training(backend: Any) -> None:
    tasks = (EvaluationTask(), EvaluationTask(environment="Acrobot-v1"), EvaluationTask(name="x", options={"x": 1}))
    problems = problems_of(evaluating(*tasks, backend=backend))
    assert set(problems) == {"evaluation.tasks[1].environment", "evaluation.tasks[2].environment"}
    spoken = " ".join(problems["evaluation.tasks[1].environment"].split())
    assert "'Acrobot-v1' expected: environments with the spaces of that of the training, CartPole-v1" in spoken
    assert "observations Box of float32[6] instead of Box of float32[4]" in spoken
    assert "actions Discrete(3) instead of Discrete(2)" in spoken
    assert "could not be made with the options (x=1)" in " ".join(problems["evaluation.tasks[2].environment"].split())


def test_an_environment_that_kills_its_process_is_a_problem_and_not_the_end() -> None:
    (problem,) = problems_of(
        evaluating(EvaluationTask(environment="tests.evaluated_environments:die"), backend="process")
    ).values()
    assert "evaluation.tasks = ['tests.evaluated_environments:die']" in problem


@on_asyncio_and_trio
async def test_a_task_that_does_not_fit_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    config = evaluating(EvaluationTask(environment="Acrobot-v1"), run_dir=tmp_path / "run")
    with pytest.raises(ConfigurationError, match="Acrobot-v1"):
        await Trainer(config).run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ((EvaluationTask(), EvaluationTask()), "each name once in its category"),
        ((EvaluationTask(category="score"),), "'eval/score'"),
        ((EvaluationTask(environment="CartPol-v1"),), "did you mean"),
        ((EvaluationTask(episodes=0),), "at least 1"),
        ((EvaluationTask(seed=-1),), "from 0"),
        ((EvaluationTask(name=" "),), "a name"),
        ((EvaluationTask(deterministic="yes"),), "true or false"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_task_is_refused(tasks: tuple[EvaluationTask, ...], expected: str) -> None:
    ((field, problem),) = problems_of(evaluating(*tasks)).items()
    assert field.startswith("evaluation.tasks")
    assert expected in problem


def test_videos_need_evaluations_and_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    problems = problems_of(evaluating(every=0, video_every=2))
    assert set(problems) == {"evaluation.video_every"}
    monkeypatch.setattr("orchestrator.checks.evaluation.find_spec", lambda name: None)
    problem = problems_of(evaluating(video_every=2, run_dir=tmp_path / "run"))["evaluation.video_every"]
    assert "async-rl-orchestrator[video]" in problem


BOX = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("needed", "found", "difference"),
    [
        (BOX, spaces.Box(-5, 5, (2,), np.float32), ""),
        (BOX, spaces.Box(-1, 1, (3,), np.float32), "Box of float32[3] instead of Box of float32[2]"),
        (BOX, spaces.Box(0, 255, (2,), np.uint8), "Box of uint8[2] instead of Box of float32[2]"),
        (BOX, spaces.Discrete(2), "Discrete(2) instead of Box of float32[2]"),
        (spaces.Discrete(2), spaces.Discrete(3), "Discrete(3) instead of Discrete(2)"),
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([2, 3]), ""),
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([3, 2]), "MultiDiscrete([3 2])"),
        (spaces.Dict(a=BOX), spaces.Dict(a=BOX), ""),
        (spaces.Dict(a=BOX), spaces.Dict(b=BOX), "there is no key 'a'; the key 'b' is unknown"),
        (spaces.Dict(a=BOX), spaces.Dict(a=spaces.Discrete(2)), "of key 'a'"),
        (spaces.Dict(a=BOX), BOX, "Box of float32[2] instead of Dict"),
    ],
)
def test_spaces_differ_in_what_a_policy_depends_on(needed: Any, found: Any, difference: str) -> None:
    differences = "; ".join(space_differences(needed, found))
    assert difference in differences
    assert bool(differences) == bool(difference)


def test_a_policy_does_not_play_where_it_cannot() -> None:
    policy = build_policy(TrainerConfig().policy, spaces_of("CartPole-v1", {}), seed=1)
    (plan,) = evaluation_plans(TrainerConfig())
    with pytest.raises(InvalidEnvironment, match="'Acrobot-v1' does not fit the policy"):
        plan.on("Acrobot-v1").play_episodes(policy)


# Scores.

SEVERAL = (
    EvaluationTask(name="likely"),
    EvaluationTask(name="sampled", deterministic=False, episodes=5, seed=3),
    EvaluationTask(name="old", category="rewards", options={"sutton_barto_reward": True}),
)


@on_asyncio_and_trio
async def test_every_task_has_a_score_that_repeats_wherever_it_is_played() -> None:
    finals = [await Trainer(evaluating(*SEVERAL, backend=backend)).run() for backend in ("process", "inline", "inline")]
    first, *others = [final.eval_scores for final in finals]
    assert first is not None
    assert others == [first, first]
    assert first.policy_version == first.epoch == finals[0].policy_version
    scores = first.simulation_scores
    assert set(scores) == {("tasks", "likely"), ("tasks", "sampled"), ("rewards", "old")}
    assert scores["tasks", "likely"] != scores["tasks", "sampled"]
    assert scores["rewards", "old"] == -1.0, "all that the other reward gives is -1 at the end"
    assert first.category_scores["tasks"] == (scores["tasks", "likely"] + scores["tasks", "sampled"]) / 2
    assert first.avg_category_score == (first.category_scores["tasks"] - 1.0) / 2
    assert first.avg_simulation_score == pytest.approx(sum(scores.values()) / 3)
    assert {"eval/tasks/likely", "eval/tasks", "eval/rewards/old", "eval/score"} <= set(first.metrics())


@pytest.fixture
def gate() -> Iterator[None]:
    evaluated_environments.GATE.clear()
    yield
    evaluated_environments.GATE.set()


@on_asyncio_and_trio
async def test_the_newest_request_replaces_the_one_that_waits(gate: None) -> None:
    config = evaluating(EvaluationTask(environment=WAITING), environment=COUNTING, epochs=8, backend="inline")
    seen = EveryState()
    trainer = Trainer(config, hooks=[seen])

    @trainer.on_epoch_end(overflow="block")
    async def open_late(state: TrainerState) -> None:
        if state.epoch == 6:
            evaluated_environments.GATE.set()

    async with trainer.start() as run:
        final = await run.result()
        statistics = run.hook_statistics()["evaluation"]
    assert [state.eval_scores for state in seen.states[:5]] == [None] * 5, "training went on meanwhile"
    assert final.eval_scores is not None
    assert final.eval_scores.policy_version == final.policy_version
    assert statistics.coalesced >= 4
    assert statistics.handled + statistics.coalesced == final.epoch


@on_asyncio_and_trio
@pytest.mark.parametrize("always", [False, True])
async def test_a_killed_evaluator_is_tried_once_more_and_changes_nothing_else(
    always: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    once = "" if always else str(tmp_path / "killed")
    task = EvaluationTask(environment=FAILING, options={"how": "kill", "fail_at": 5, "once": once})
    trainer = Trainer(evaluating(task, every=3, environment=FAILING, backend="process"))
    with caplog.at_level(logging.WARNING):
        async with trainer.start() as run:
            final = await run.result()
            statistics = run.hook_statistics()["evaluation"]
    alone = await Trainer(evaluating(every=0, environment=FAILING, backend="inline")).run()
    assert final.policy is not None
    assert alone.policy is not None
    assert all(np.array_equal(array, alone.policy.tensors[name]) for name, array in final.policy.tensors.items())
    if always:
        assert statistics.failed == statistics.retried == statistics.delivered > 0
        assert final.eval_scores is None
        assert "hook 'evaluation' failed to handle on_epoch_end" in caplog.text
        assert "SIGKILL" in caplog.text
    else:
        assert (statistics.retried, statistics.failed) == (1, 0)
        assert final.eval_scores is not None
        assert final.eval_scores.simulation_scores == {("tasks", FAILING): 10.0}


# Videos.


def frames_of(video: Path, height: int, width: int) -> np.ndarray[Any, Any]:
    """`[frames, height, width, 3]`, decoded by ffmpeg."""
    decode = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(video), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(decode, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


@on_asyncio_and_trio
async def test_an_episode_of_each_task_is_recorded(tmp_path: Path) -> None:
    tasks = (EvaluationTask(name="a/b"), EvaluationTask(name="a-b", episodes=1))
    folder = tmp_path / "run"
    settings: dict[str, Any] = {"run_dir": folder, "backend": "process", "metrics": MetricsConfig(tensorboard=True)}
    config = evaluating(*tasks, video_every=3, environment=DRAWING, epochs=4, **settings)
    trainer = Trainer(config)
    for hook in trainer.hooks:
        hook.overflow = "block"  # so that every epoch is evaluated, however slow this machine is
    final = await trainer.run()
    files = [folder / "videos" / "00000003-a-b.mp4", folder / "videos" / "00000003-a-b-2.mp4"]
    assert final.results is not None
    result = final.results["videos"]
    assert result.value == {"tasks/a/b": str(files[0]), "tasks/a-b": str(files[1])}
    assert (result.hook, result.epoch, result.policy_version) == ("evaluation", 3, 3)
    assert sorted((folder / "videos").iterdir()) == sorted(files)
    frames = frames_of(files[0], 32, 64)
    assert len(frames) == 7, "the first observation and six steps"
    brightest = [int((frame[16, :, 0] > 200).argmax()) for frame in frames]
    assert brightest == sorted(set(brightest)), "the square moves"

    events: Any = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["video/tasks/a-b", "video/tasks/a/b"]
    (shown,) = events.Images("video/tasks/a/b")
    assert (shown.width, shown.height, shown.encoded_image_string[:3]) == (64, 32, b"GIF")
    with Image.open(io.BytesIO(shown.encoded_image_string)) as gif:
        assert gif.n_frames > 1  # type: ignore[attr-defined]


@on_asyncio_and_trio
@pytest.mark.parametrize(("fault", "reported"), [("raise", "there is no display"), ("kill", "SIGKILL")])
async def test_a_recording_that_fails_is_reported_and_the_scores_arrive(
    fault: str, reported: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = (EvaluationTask(name="faulty", options={"fault": fault}), EvaluationTask(name="sound"))
    config = evaluating(
        *tasks, every=4, video_every=1, environment=DRAWING, run_dir=tmp_path / "run", backend="process"
    )
    trainer = Trainer(config)
    with caplog.at_level(logging.WARNING):
        async with trainer.start() as run:
            final = await run.result()
            statistics = run.hook_statistics()["evaluation"]
    assert (statistics.failed, statistics.retried) == (0, 0)
    assert final.eval_scores is not None
    assert final.eval_scores.simulation_scores == {("tasks", "faulty"): 21.0, ("tasks", "sound"): 21.0}
    assert final.results is not None
    assert list(final.results["videos"].value) == ["tasks/sound"]
    assert "no video of task 'tasks/faulty'" in caplog.text
    assert reported in caplog.text


@on_asyncio_and_trio
async def test_an_environment_that_cannot_be_drawn_is_told_what_a_video_needs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = evaluating(every=4, video_every=4, environment="tests.environments:make_opaque", run_dir=tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        final = await Trainer(config).run()
    assert final.eval_scores is not None
    assert "no video of task 'training/tests.environments:make_opaque'" in caplog.text
    assert "one that is recorded is made with render_mode='rgb_array', and renders as arrays: " in caplog.text


def test_a_hook_that_is_taken_up_again_knows_when_it_recorded_last() -> None:
    (plan,) = evaluation_plans(TrainerConfig())
    first, second = (EvaluationHook([plan], 1, video_every=50) for _ in range(2))
    first.load_state_dict({"video_epoch": 150})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == {"video_epoch": 150}


def test_names_of_files_hold_nothing_that_a_path_cannot() -> None:
    (plan,) = evaluation_plans(TrainerConfig())
    plans = [dataclasses.replace(plan, name=name) for name in ("ALE/Pong-v5", "../x", "x", "?")]
    assert video_names(plans) == ["ALE-Pong-v5", "x", "x-2", "task"]


# The command.


@on_asyncio_and_trio
async def test_the_command_plays_the_tasks_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    final = await Trainer(evaluating(*SEVERAL, run_dir=folder, backend="inline")).run()
    assert final.eval_scores is not None
    assert main(["eval", str(folder), "--episodes", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    likely, sampled, old = report["tasks"]
    assert (likely["category"], likely["name"], likely["episodes"]) == ("tasks", "likely", 3)
    assert likely["return_mean"] == final.eval_scores.simulation_scores["tasks", "likely"]
    assert (likely["actions"], sampled["actions"]) == ("most likely", "sampled")
    assert old["return_mean"] == report["category_scores"]["rewards"] == -1.0
    assert report["avg_category_score"] == sum(report["category_scores"].values()) / 2

    assert main(["eval", str(folder), "--episodes", "3"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["tasks/likely", f"{likely['return_mean']:.6g}"] in lines
    assert ["rewards", "-1"] in lines
    assert ["avg_category_score", f"{report['avg_category_score']:.6g}"] in lines

    assert main(["eval", str(folder), "--episodes", "2", "--environment", "CartPole-v1", "--json"]) == 0
    single = json.loads(capsys.readouterr().out)
    assert (single["environment"], single["episodes"]) == ("CartPole-v1", 2)
    assert "tasks" not in single

    assert main(["eval", str(folder), "--environment", "Acrobot-v1"]) == 2
    assert "'Acrobot-v1' does not fit the policy" in capsys.readouterr().err


# Environments that draw from the process's generators and fail to close.


@on_asyncio_and_trio
async def test_scores_and_videos_outlive_an_environment_that_fails_to_close_and_repeat_although_it_draws_anywhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name = "tests.evaluated_environments:make_careless"
    folder = tmp_path / "run"
    scores: list[float] = []

    class Scores(Hook):
        overflow = "block"

        async def on_training_end(self, state: TrainerState) -> None:
            assert state.eval_scores is not None
            scores.append(state.eval_scores.simulation_scores["tasks", "careless"])

    task = EvaluationTask(name="careless", environment=name)
    for place in (folder, tmp_path / "again"):
        settings: dict[str, Any] = {"run_dir": place, "backend": "process", "environment": DRAWING, "epochs": 2}
        await Trainer(evaluating(task, every=2, video_every=2, **settings), hooks=[Scores()]).run()
    assert scores[0] == scores[1]
    assert len(list((folder / "videos").iterdir())) == 1

    reports: list[str] = []
    for _ in range(2):
        assert main(["eval", str(folder), "--episodes", "3", "--json"]) == 0
        reports.append(capfd.readouterr().out)
    assert reports[0] == reports[1]
    assert "failed to close" in caplog.text
    assert json.loads(reports[0])["return_mean"] == scores[0]


@pytest.mark.anyio
async def test_an_environment_that_never_ends_an_episode_is_told_of_with_the_cure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = evaluator.evaluate.__kwdefaults__ or {}
    monkeypatch.setattr(evaluator.evaluate, "__kwdefaults__", {**defaults, "limit": 30})
    monkeypatch.setattr(evaluator, "LONG_EPISODES", 20)
    config = evaluating(environment=COUNTING, environment_options={"lengths": [10**6]}, run_dir=tmp_path)
    await Trainer(config).run()
    cut = "had not ended 2 episodes of the evaluation after 30 agent steps"
    assert caplog.text.count(cut) == 1
    caplog.clear()
    assert main(["eval", str(tmp_path), "--episodes", "3"]) == 0
    assert "has not ended any episode of the evaluation in 20 steps; they are cut after 30: set max_episode_steps" in (
        caplog.text
    )
    assert cut in caplog.text
