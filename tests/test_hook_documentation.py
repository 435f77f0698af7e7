"""The code in docs/hooks.md, run: each hook against an engine, and all of them in a training."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator import CheckpointsConfig, EvaluationConfig, Trainer
from orchestrator.config.settings import CollectionConfig, TrainerConfig
from orchestrator.hooks.function_hook import function_hook
from orchestrator.hooks.hook import Hook, StateUpdate
from state.eval_rewards import EvalRewardSummary
from state.stats_tracker import StatsTracker
from state.trainer_state import TrainerState
from tests.documentation import code_blocks, text_of
from tests.orchestrator.hooks.driving import DEADLINE, AtEpochEnd, FakeRun, publish_epochs, quiet, running
from tests.orchestrator.training import small_config

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
TEXT = text_of("hooks.md")


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    """Everything that the document defines."""
    names: dict[str, Any] = {"__name__": "documented"}
    for block in code_blocks(TEXT):
        exec(compile(block, "docs/hooks.md", "exec"), names)
    return names


def evaluated(version: int, score: float) -> EvalRewardSummary:
    return EvalRewardSummary.from_simulations({("task", "CartPole"): score}, policy_version=version, epoch=version)


def test_every_documented_event_and_setting_exists() -> None:
    from orchestrator.hooks.hook import EVENTS, Hook

    table = set(
        re.findall(r"^\| `(\w+)` \|", TEXT.split("## Delivery")[1].split("### What you")[0], flags=re.MULTILINE)
    )
    assert table == set(Hook.__annotations__) - {"run", "saves"}
    loop = TEXT.split("```text")[1].split("```")[0]
    assert set(re.findall(r"\bon_\w+", loop)) == set(EVENTS)
    updates = TEXT.split("## Returning something")[1].split("## Steering")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", updates, flags=re.MULTILINE)) == set(StateUpdate.__dataclass_fields__)


def test_the_documented_defaults_are_the_defaults() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", TEXT, flags=re.MULTILINE))
    for name in ("every", "max_lag", "retries", "disable_after", "backoff"):
        assert float(rows[name]) == getattr(Hook, name), name
    assert rows["overflow"] == f"`{Hook.overflow}`"
    assert rows["on_error"] == f"`{Hook.on_error}`"
    assert (Hook.timeout, Hook.drain, Hook.after) == (None, True, ())
    assert rows["transient"] == "`(TimeoutError, ConnectionError)`"
    assert Hook.transient == (TimeoutError, ConnectionError)


@contextmanager
def chat(failures: int) -> Generator[tuple[str, list[tuple[str, str]]]]:
    """A server on loopback that is down for the first requests; its address, and (key, text) of what it got."""
    received: list[tuple[str, str]] = []
    remaining = [failures]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append((self.headers["Idempotency-Key"], body["text"]))
            remaining[0] -= 1
            self.send_response(503 if remaining[0] >= 0 else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", received
        finally:
            server.shutdown()
            thread.join()


async def test_the_webhook_delivers_each_message_in_spite_of_a_server_that_is_down_at_first(
    documented: dict[str, Any],
) -> None:
    with chat(failures=2) as (url, received):
        hook = documented["Webhook"](url, every=2)
        hook.backoff = 0.0
        tracker = StatsTracker().with_rollout({"episode_return": [20.0, 30.0], "episode_length": [20, 30]}, 50)
        async with running(hook) as engine:
            for epoch in range(1, 5):
                await engine.publish("on_epoch_end", TrainerState(epoch=epoch, agent_step=50, stats_tracker=tracker))
                assert await engine.drain(DEADLINE) == ()
            await publish_epochs(engine, 4, event="on_training_end")
            await publish_epochs(engine, 4, event="on_failure")
            assert await engine.drain(DEADLINE) == ()
            assert engine.statistics().hooks["webhook"].retried == 2
            assert engine.statistics().hooks["webhook"].failed == 0
    assert [text for _, text in received] == [
        *["epoch 2, 50 agent steps: return 25.0"] * 3,
        "epoch 4, 50 agent steps: return 25.0",
        "done after 4 epochs",
        "FAILED after 4 epochs",
    ]
    keys = [key for key, _ in received]
    assert len(set(keys[:3])) == 1
    assert len(set(keys[2:])) == 4


async def test_learning_rate_control_answers_to_the_size_of_the_steps(documented: dict[str, Any]) -> None:
    hook = documented["LearningRateControl"](target_kl=0.01, least=0.2)
    scales: list[float] = []
    async with running(hook) as engine:
        assert isinstance(engine.run, FakeRun)
        for epoch, kl in enumerate([0.01, 0.016, 0.03, 0.09, 0.007, 0.001, 0.001, 0.001], start=1):
            await engine.publish("on_epoch_end", TrainerState(epoch=epoch, loss_stats={"ppo_actor/approx_kl": kl}))
            await engine.drain(DEADLINE)
            scales.append(engine.run.learning_rate_scale)
    assert scales == [1.0, 0.5, 0.25, 0.2, 0.2, 0.4, 0.8, 1.0]


async def test_the_best_checkpoint_is_kept_and_matches_its_score(documented: dict[str, Any], tmp_path: Path) -> None:
    best = tmp_path / "best one"
    hook = documented["CopyBest"](best)
    saver = AtEpochEnd("saver", act=lambda state: StateUpdate(latest_checkpoint_uri=save(tmp_path, state.epoch)))

    def evaluation_of_the_epoch_before(state: TrainerState) -> StateUpdate | None:
        scores = {1: 10.0, 2: 30.0, 3: 20.0, 4: 30.0, 5: 31.0}
        version = state.epoch - 1
        return StateUpdate(eval_scores=evaluated(version, scores[version])) if version in scores else None

    evaluation = AtEpochEnd("evaluation", act=evaluation_of_the_epoch_before)
    kept: list[str] = []
    async with running(saver, evaluation, hook) as engine:
        for epoch in range(1, 8):
            state = engine.fold(TrainerState(epoch=epoch, policy_version=epoch))
            await engine.publish("on_epoch_end", state)
            assert await engine.drain(DEADLINE) == ()
            if best.exists():
                kept.append((best / "epoch").read_text())
        assert engine.statistics().hooks["copy_best"].failed == 0
        results = engine.fold(TrainerState()).results
        assert results is not None
        assert results["best"].value == {"score": 31.0, "policy_version": 5}
    assert kept == ["1", "2", "2", "2", "5"]


def save(folder: Path, epoch: int) -> str:
    checkpoint = folder / "check points" / str(epoch)
    checkpoint.mkdir(parents=True)
    (checkpoint / "epoch").write_text(str(epoch))
    return checkpoint.as_uri()


@pytest.mark.parametrize(
    ("scores", "settings", "stopped_at"),
    [
        ([1.0, 2.0, 3.0, 2.5, 2.9, 2.0, 9.0], {"patience": 3}, 6),
        ([1.0, 2.0, 3.0, 2.5, 2.9, 3.1, 9.0], {"patience": 3}, None),
        ([1.0, 2.0, 5.0, 9.0], {"patience": 3, "target": 5.0}, 3),
    ],
)
async def test_early_stop_ends_a_run_without_progress_or_at_its_goal(
    documented: dict[str, Any], scores: list[float], settings: dict[str, Any], stopped_at: int | None
) -> None:
    hook = documented["EarlyStop"](**settings)
    stopped: int | None = None
    async with running(hook) as engine:
        assert isinstance(engine.run, FakeRun)
        for version, score in enumerate(scores, start=1):
            for epoch in (2 * version, 2 * version + 1):  # every score is seen twice, and counts once
                await engine.publish("on_epoch_end", TrainerState(epoch=epoch, eval_scores=evaluated(version, score)))
                await engine.drain(DEADLINE)
            if engine.run.wishes and stopped is None:
                stopped = version
        assert engine.statistics().hooks["early_stop"].failed == 0
    assert stopped == stopped_at


async def test_the_gradient_alarm_sounds_for_what_is_not_usual(
    documented: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    hook = documented["GradientAlarm"](factor=3.0, window=4)
    alarms: list[int] = []
    async with running(hook) as engine:
        assert isinstance(engine.run, FakeRun)
        norms = [9.0, 1.0, 1.1, 0.9, 2.9, 3.0, 9.9, 1.0, math.nan]
        for epoch, norm in enumerate(norms, start=1):
            engine.run.wishes.clear()
            await engine.publish("on_epoch_end", TrainerState(epoch=epoch, loss_stats={"gradient_norm": norm}))
            await engine.drain(DEADLINE)
            if engine.run.wishes == ["checkpoint"]:
                alarms.append(epoch)
        assert engine.statistics().hooks["gradient_alarm"].failed == 0
    assert alarms == [7, 9]
    assert "epoch 7: gradient norm 9.9" in caplog.text


async def test_the_ticker_writes_and_closes_its_file(documented: dict[str, Any], tmp_path: Path) -> None:
    hook = documented["Ticker"](str(tmp_path / "ticks"))
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(DEADLINE)
        await quiet()
    assert (tmp_path / "ticks").read_text() == "1 0\n"
    assert hook.file.wrapped.closed


async def test_all_documented_hooks_work_in_a_training(
    documented: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainerConfig(
        total_agent_steps=4096,
        run_dir=tmp_path / "run",
        collection=CollectionConfig(num_environments=8, horizon=64, backend="inline"),
        evaluation=EvaluationConfig(every=1, episodes=2, num_environments=2),
        checkpoints=CheckpointsConfig(every=1, keep=0),
    )
    with chat(failures=1) as (url, received), caplog.at_level(logging.WARNING):
        webhook = documented["Webhook"](url, every=2)
        webhook.backoff = 0.0
        copy_best, early_stop = documented["CopyBest"](tmp_path / "best"), documented["EarlyStop"](patience=100)
        hooks = [
            webhook,
            documented["LearningRateControl"](),
            copy_best,
            early_stop,
            documented["GradientAlarm"](factor=1e9),
            documented["Ticker"](str(tmp_path / "ticks")),
            documented["Announce"](),
            documented["Rank"](),
        ]
        for hook in hooks:
            hook.every = min(hook.every, 2)
        hooks.append(function_hook("on_train_phase_end", documented["note"], {}))
        with anyio.fail_after(6 * DEADLINE):
            async with Trainer(config, hooks=hooks).start() as run:
                final = await run.result()
        statistics = run.hook_statistics()
    assert final.agent_step >= 4096
    for name, hook in statistics.items():
        assert hook.failed == 0, (name, caplog.text)
        assert hook.handled >= 1, name
    assert received[-1][1] == f"done after {final.epoch} epochs"
    assert (tmp_path / "best" / "manifest.json").is_file()
    assert early_stop.seen is not None
    assert final.results is not None
    assert final.results["rank"].value >= 1.0
    assert final.results["best"].value["score"] == copy_best.best


async def test_the_hook_with_a_state_keeps_counting_when_its_run_is_resumed(
    documented: dict[str, Any], tmp_path: Path
) -> None:
    first, second = documented["CountEpochs"](), documented["CountEpochs"]()
    first.overflow = second.overflow = "block"
    config = small_config(epochs=3, run_dir=tmp_path / "run")
    before = await Trainer(config, hooks=[first]).run()
    longer = replace(config, total_agent_steps=2 * config.total_agent_steps)
    after = await Trainer(longer, hooks=[second], resume=tmp_path / "run").run()
    assert 0 < first.epochs == before.epoch < after.epoch == second.epochs


async def test_the_documented_hooks_go_on_with_what_they_know_when_their_run_is_resumed(
    documented: dict[str, Any], tmp_path: Path
) -> None:
    def hooks() -> tuple[Any, Any, Any]:
        made = documented["EarlyStop"](patience=100), documented["CopyBest"](tmp_path / "best")
        return *made, documented["GradientAlarm"](factor=1e9, window=100)

    config = small_config(
        epochs=3,
        run_dir=tmp_path / "run",
        evaluation=EvaluationConfig(every=1, episodes=2, num_environments=2),
        checkpoints=CheckpointsConfig(every=1, keep=0),
    )
    first, second = hooks(), hooks()
    before = await Trainer(config, hooks=first).run()
    known = json.loads(json.dumps([hook.state_dict() for hook in first]))
    for hook, state in zip(second, known, strict=True):
        hook.load_state_dict(state)
        assert hook.state_dict() == state
    second = hooks()
    longer = replace(config, total_agent_steps=2 * config.total_agent_steps)
    after = await Trainer(longer, hooks=second, resume=tmp_path / "run").run()
    assert list(second[2].norms)[: before.epoch] == list(first[2].norms)
    assert len(second[2].norms) == after.epoch
    assert second[0].best >= first[0].best
    assert second[1].best >= first[1].best


async def test_patience_is_over_all_resumptions(documented: dict[str, Any]) -> None:
    state: dict[str, Any] | None = None
    wishes: list[Any] = []
    for version, score in enumerate([3.0, 2.0, 1.0], start=1):
        hook = documented["EarlyStop"](patience=2)
        async with running(hook) as engine:
            if state is not None:
                engine.load_hook_states({"early_stop": state})
            await engine.publish("on_epoch_end", TrainerState(epoch=version, eval_scores=evaluated(version, score)))
            await engine.drain(DEADLINE)
            state = dict(engine.hook_states()["early_stop"])
            assert isinstance(engine.run, FakeRun)
            wishes.append(bool(engine.run.wishes))
    assert wishes == [False, False, True]
