"""What the loop's tasks do at every moment: counted by a clock set by hand, and in real runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import ConfigurationError, Hook, LearningConfig, MetricsConfig, Trainer
from orchestrator.collection.collector import CollectReport
from orchestrator.learning.messages import LearnReport
from orchestrator.tracing.timeline import Timeline, critical_path
from state.policy_point import PolicyPoint
from state.stopwatch import Stopwatch
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from pathlib import Path

    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow


class HandClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def timeline(clock: HandClock) -> Timeline:
    return Timeline(Stopwatch(clock), clock=clock)


def collected(began: float, ended: float) -> CollectReport:
    return CollectReport(agent_steps=1, rollout_stats={}, began=began, ended=ended, interrupted=False)


def learned(began: float, ended: float) -> LearnReport:
    return LearnReport(loss_stats={}, update_epochs=1, minibatches=1, began=began, ended=ended, interrupted=False)


def lap(timeline: Timeline, epoch: int = 0) -> dict[str, float]:
    """The lap's times that are not 0."""
    return {name: seconds for name, seconds in timeline.lap(epoch).lap_timer_seconds.items() if seconds}


def test_work_is_what_the_workers_report_and_messages_are_the_hosts(timeline: Timeline, clock: HandClock) -> None:
    timeline.learning.now("wait")
    timeline.collecting.now("work")
    clock.now = 110.0
    # Two collectors: from the first one's beginning to the last one's end.
    timeline.collected(0, PolicyPoint(0), [collected(101.0, 107.0), collected(102.0, 109.0)])
    timeline.collecting.now("wait")
    timeline.learning.now("work")
    clock.now = 114.0
    timeline.learned(0, 1, learned(110.5, 113.5))
    assert lap(timeline) == {
        "collect": 8.0,
        "host_collect": 2.0,
        "wait_collect": 4.0,
        "wait_learn": 10.0,
        "host_learn": 1.0,
        "learn": 3.0,
        "critical_collect": 8.0,
        "critical_host": 3.0,
        "critical_learn": 3.0,
    }


def test_a_rollout_that_two_epochs_share_is_divided_between_them(timeline: Timeline, clock: HandClock) -> None:
    timeline.learning.now("work")
    timeline.collecting.now("work")
    clock.now = 104.0
    timeline.learned(0, 1, learned(100.0, 104.0))
    assert lap(timeline, 0) == {"learn": 4.0, "collect": 4.0, "critical_learn": 4.0}
    timeline.learning.now("wait")
    clock.now = 107.0
    timeline.collected(1, PolicyPoint(0), [collected(100.5, 106.0)])
    timeline.collecting.now("wait")
    timeline.learning.now("work")
    clock.now = 109.0
    timeline.learned(1, 2, learned(107.0, 109.0))
    times = lap(timeline, 1)
    assert times.pop("policy_lag", 0.0) == 0.0
    assert times == {
        "wait_learn": 3.0,
        "learn": 2.0,
        "collect": 2.0,
        "host_collect": 1.0,
        "wait_collect": 2.0,
        "critical_collect": 2.0,
        "critical_host": 1.0,
        "critical_learn": 2.0,
    }


def test_an_answer_that_comes_after_the_lap_in_which_its_work_ended_counts_nothing_twice(
    timeline: Timeline, clock: HandClock
) -> None:
    timeline.collecting.now("work")
    clock.now = 104.0
    assert lap(timeline, 0)["collect"] == 4.0
    clock.now = 105.0
    timeline.collected(1, PolicyPoint(0), [collected(101.0, 103.0)])
    assert lap(timeline, 1) == {"host_collect": 1.0, "host_learn": 1.0, "critical_host": 1.0}


def test_the_lag_is_from_publication_to_the_begin_of_the_rollout_of_the_same_epoch(
    timeline: Timeline, clock: HandClock
) -> None:
    timeline.published(PolicyPoint(0))
    clock.now = 103.0
    timeline.collected(0, PolicyPoint(0), [collected(102.0, 103.0)])
    timeline.learned(0, 1, learned(103.0, 103.0))
    timeline.collected(1, PolicyPoint(0), [collected(102.5, 103.0)])
    timeline.collected(2, PolicyPoint(1), [collected(110.0, 111.0)])
    assert lap(timeline, 0)["policy_lag"] == 2.0
    assert lap(timeline, 1)["policy_lag"] == 2.5
    assert lap(timeline, 2)["policy_lag"] == 7.0


ACTIVITIES = st.lists(
    st.tuples(st.sampled_from(["work", "wait", "hooks", "host"]), st.integers(1, 50)), min_size=1, max_size=12
)


def pieces(activities: list[tuple[Any, int]], end: int) -> list[tuple[Any, float, float]]:
    """The activities one after the other from 0 on, cut or drawn out to `end`."""
    made: list[tuple[Any, float, float]] = []
    began = 0
    for activity, length in activities:
        if began < end:
            made.append((activity, float(began), float(min(end, began + length))))
        began += length
    last, start, _ = made[-1]
    return [*made[:-1], (last, start, float(end))]


@given(learning=ACTIVITIES, collecting=ACTIVITIES)
def test_the_critical_path_is_what_looking_at_every_moment_says(
    learning: list[tuple[Any, int]], collecting: list[tuple[Any, int]]
) -> None:
    end = sum(length for _, length in learning)
    learn, collect = pieces(learning, end), pieces(collecting, end)

    def at(lane: list[tuple[Any, float, float]], moment: int) -> str:
        return next(activity for activity, began, ended in lane if began <= moment < ended)

    expected = {"learn": 0.0, "collect": 0.0, "hooks": 0.0, "host": 0.0}
    for moment in range(end):
        mine, other = at(learn, moment), at(collect, moment)
        kind = {"work": "learn"}.get(mine, mine)
        if mine == "wait":
            kind = {"work": "collect", "wait": "host"}.get(other, other)
        expected[kind] += 1.0
    assert critical_path(learn, collect) == expected


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.anyio
@pytest.mark.parametrize(("staleness", "backend"), [(0, "inline"), (1, "process"), (2, "inline")])
async def test_in_a_run_the_activities_of_a_task_and_the_critical_path_add_up_to_each_epoch(
    tmp_path: Path, staleness: int, backend: Any
) -> None:
    config = small_config(epochs=6, staleness=staleness, backend=backend, run_dir=tmp_path / "run", collectors=2)
    await Trainer(config).run()
    epochs = records(tmp_path / "run")
    assert len(epochs) >= 6
    for record in epochs:
        for task in ("collect", "learn"):
            parts = [record.get(f"time/{prefix}{task}", 0.0) for prefix in ("", "wait_", "hooks_", "host_")]
            assert sum(parts) == pytest.approx(record["time/epoch"], rel=0.05), record
        critical = [record[f"time/critical_{part}"] for part in ("learn", "collect", "hooks", "host")]
        assert sum(critical) == pytest.approx(record["time/epoch"], rel=0.05), record
        assert record["time/critical_learn"] == pytest.approx(record["time/learn"])
        assert record["time/critical_collect"] <= record["time/collect"] * 1.001
        assert record["time/policy_lag"] >= 0
    if staleness == 0:  # taking turns hides nothing
        hidden = sum(record["time/collect"] - record["time/critical_collect"] for record in epochs)
        assert hidden <= 0.05 * sum(record["time/epoch"] for record in epochs)


class HoldUp(Hook):
    """Holds the training up for a while, once."""

    overflow = "block"
    max_lag = 1
    SECONDS = 0.05

    async def on_epoch_end(self, state: TrainerState) -> None:
        while state.epoch == 1 and self.run.hook_statistics()["hold_up"].blocked_seconds < self.SECONDS:
            await anyio.sleep(0.001)


@pytest.mark.anyio
async def test_time_in_which_a_hook_holds_the_training_up_is_on_the_critical_path(tmp_path: Path) -> None:
    await Trainer(small_config(epochs=5, staleness=0, run_dir=tmp_path / "run"), hooks=[HoldUp()]).run()
    assert sum(record["time/critical_hooks"] for record in records(tmp_path / "run")) >= HoldUp.SECONDS


def test_settings_that_write_files_want_a_folder() -> None:
    config = small_config(
        learning=LearningConfig(update_epochs=2, minibatches=2, profile_epochs=(2,)), metrics=MetricsConfig(trace=True)
    )
    with pytest.raises(ConfigurationError) as caught:
        Trainer(config)._checked_losses()
    assert {problem.field for problem in caught.value.problems} == {"learning.profile_epochs", "metrics.trace"}
