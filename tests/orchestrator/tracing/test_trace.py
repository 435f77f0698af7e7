"""The trace: valid in its format, true to the metrics, bounded, there after a kill, and absent where it is off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import torch

from orchestrator import EvaluationConfig, Hook, LearningConfig, MetricsConfig, Trainer
from orchestrator.collection.collector import CollectReport
from orchestrator.hooks.included.trace import TraceHook
from orchestrator.learning.messages import LearnReport
from orchestrator.report.trace_file import read_events, read_trace
from orchestrator.run import parts_of
from orchestrator.tracing.trace import Trace
from orchestrator.workers.spans import Span, Spans
from state.policy_point import PolicyPoint
from tests.orchestrator.hooks.driving import until
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.report.trace_file import Slice, TraceFile
    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow

TRACED = MetricsConfig(trace=True, progress="off")
REQUIRED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "M": {"name", "pid", "tid", "args"},
    "i": {"name", "ts", "pid", "tid", "s"},
    "s": {"name", "cat", "ts", "pid", "tid", "id"},
    "f": {"name", "cat", "ts", "pid", "tid", "id", "bp"},
}
"""Keys that the format asks for, by phase."""
ROUNDING = 0.002
"""Microseconds that two times may differ which were one before they were rounded."""


def check_format(events: list[dict[str, Any]]) -> None:
    """Everything that a viewer relies on."""
    named: set[tuple[int, int]] = set()
    processes: set[int] = set()
    slices: dict[tuple[int, int], list[tuple[float, float, str]]] = defaultdict(list)
    arrows: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    assert events
    for event in events:
        assert event.keys() >= REQUIRED[event["ph"]], event
        place = event["pid"], event["tid"]
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
            if event["name"] == "process_name":
                processes.add(event["pid"])
            elif event["name"] == "thread_name":
                assert place not in named, "a track is named once"
                named.add(place)
            continue
        assert event["ts"] >= 0, event
        if event["ph"] == "X":
            assert place in named, "a track is named before it is used"
            assert event["dur"] >= 0, event
            slices[place].append((event["ts"], event["ts"] + event["dur"], event["name"]))
        elif event["ph"] in "sf":
            assert event["ph"] not in arrows[event["id"]], "an arrow has one beginning and one end"
            arrows[event["id"]][event["ph"]] = event
    assert {pid for pid, _ in named} <= processes
    for track in slices.values():
        open_slices: list[tuple[float, float, str]] = []
        for one in sorted(track, key=lambda one: (one[0], -one[1])):
            while open_slices and open_slices[-1][1] <= one[0] + ROUNDING:
                open_slices.pop()
            assert not open_slices or one[1] <= open_slices[-1][1] + ROUNDING, (open_slices, one)
            open_slices.append(one)
    for ends in arrows.values():
        assert ends.keys() == {"s", "f"}
        assert ends["s"]["ts"] <= ends["f"]["ts"], "a policy is used after it was published"
        for end in ends.values():
            at = slices[end["pid"], end["tid"]]
            assert any(began <= end["ts"] <= ended for began, ended, _ in at), "an arrow is fixed to slices"


def seconds_in(epoch: Slice, slices: list[Slice], name: str) -> float:
    """How long slices of a name last within an epoch."""
    inside = [min(one.ended, epoch.ended) - max(one.began, epoch.began) for one in slices if one.name == name]
    return sum(length for length in inside if length > 0)


def names_of(trace: TraceFile, group: str) -> set[str]:
    return {one.track for one in trace.slices if one.group == group}


class Slow(Hook):
    """Holds the training up until it has noticed, twice."""

    overflow = "block"
    max_lag = 1

    async def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch in (1, 4):
            before = self.run.hook_statistics()["slow"].blocked_seconds
            await until(lambda: self.run.hook_statistics()["slow"].blocked_seconds > before)


@pytest.mark.anyio
async def test_a_trace_has_everything_that_happens_on_one_clock_as_the_metrics_have_it(tmp_path: Path) -> None:
    config = small_config(
        epochs=9,
        backend="process",
        collectors=2,
        run_dir=tmp_path / "run",
        metrics=TRACED,
        evaluation=EvaluationConfig(every=3, episodes=2, num_environments=2),
    )
    trainer = Trainer(config, hooks=[Slow()])
    final = await trainer.run()
    path = tmp_path / "run" / "trace.json"
    json.loads(path.read_text())  # closed, since the run has ended in order
    check_format(read_events(path))
    trace = read_trace(path)
    assert trace is not None
    assert names_of(trace, "training loop") == {"epochs", "collect task", "learn task"}
    assert names_of(trace, "workers") == {"collector 0", "collector 1", "learner", "publications", "evaluator"}
    included = {"checkpoint", "evaluation", "idle_cores", "learning_watch", "metrics", "trace"}
    assert names_of(trace, "hooks") == included | {"slow", "slow: the training waits"}

    epochs = trace.of("epoch")
    assert [one.arguments["epoch"] for one in epochs] == [*range(1, final.epoch + 1)]
    learned = trace.of("learn")
    assert [one.arguments["minibatches"] for one in learned] == [4] * final.epoch
    assert len(trace.of("minibatch")) == 4 * final.epoch
    assert len(trace.of("update epoch")) == 2 * final.epoch
    assert [one.arguments["policy_version"] for one in trace.of("publish") if one.track == "publications"] == [
        *range(1, final.epoch + 1)
    ]
    assert sum(one.arguments["agent_steps"] for one in trace.of("collect")) == final.agent_step

    # Against the metrics: what the tasks did, and what the workers say themselves.
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tasks = trace.of("task")
    for epoch, record in zip(epochs, records, strict=True):
        near = 0.05 * record["time/epoch"]
        assert epoch.ended - epoch.began == pytest.approx(record["time/epoch"], abs=near)
        for task in ("collect", "learn"):
            drawn = {name: seconds_in(epoch, tasks, f"{name}{task}") for name in ("", "wait_", "hooks_", "host_")}
            told = {name: record.get(f"time/{name}{task}", 0.0) for name in drawn}
            assert sum(drawn.values()) == pytest.approx(record["time/epoch"], abs=near)
            # Work that goes on at the end of an epoch is counted from when it was asked for, since it is not known yet
            # when it began.
            unknown = drawn["host_"] if task == "collect" else 0.0
            assert drawn[""] - near <= told[""] <= drawn[""] + unknown + near
            assert drawn[""] + drawn["host_"] == pytest.approx(told[""] + told["host_"], abs=near)
            assert drawn["wait_"] == pytest.approx(told["wait_"], abs=near)
            assert drawn["hooks_"] == pytest.approx(told["hooks_"], abs=near)
        learn = next(one for one in learned if one.arguments["epoch"] == record["epoch"])
        assert learn.ended - learn.began == pytest.approx(record["time/learn"], abs=near)
        assert epoch.began - near <= learn.began <= learn.ended <= epoch.ended
    drawn = sum(one.ended - one.began for one in trace.of("block"))
    blocked = trainer.current_run.hook_statistics()["slow"].blocked_seconds
    assert drawn == pytest.approx(blocked, rel=0.01)


@pytest.mark.anyio
async def test_tracing_and_profiling_change_nothing_that_is_learned(tmp_path: Path) -> None:
    async def weights(**settings: Any) -> torch.Tensor:
        final = await Trainer(small_config(epochs=3, **settings)).run()
        assert final.policy is not None
        return torch.cat([torch.tensor(array).flatten() for array in final.policy.tensors.values()])

    folder = tmp_path / "run"
    learning = LearningConfig(update_epochs=2, minibatches=2)
    looked_at = LearningConfig(update_epochs=2, minibatches=2, profile_epochs=(2,))
    plain = await weights(learning=learning)
    observed = await weights(learning=looked_at, run_dir=folder, metrics=TRACED, backend="process")
    assert torch.equal(plain, observed)
    assert [path.name for path in folder.glob("profile-*")] == ["profile-2.json"]
    profile = json.loads((folder / "profile-2.json").read_text())
    assert any("backward" in str(event.get("name", "")).lower() for event in profile["traceEvents"])


@pytest.mark.anyio
async def test_without_tracing_nothing_is_recorded(tmp_path: Path) -> None:
    trainer = Trainer(small_config(epochs=2, run_dir=tmp_path / "run"))
    await trainer.run()
    assert not list((tmp_path / "run").glob("trace*"))
    assert parts_of(trainer.current_run).trace is None
    off, on = Spans(False), Spans(True)
    for spans in (off, on):
        spans.end("minibatch", 0, 0)
    assert not off.recorded
    assert len(on.recorded) == 1


@pytest.mark.anyio
async def test_each_run_of_a_trainer_has_a_trace_of_its_own(tmp_path: Path) -> None:
    trainer = Trainer(small_config(epochs=2), hooks=[TraceHook(tmp_path / "trace.json")])
    for path in (tmp_path / "trace.json", tmp_path / "trace-2.json"):
        final = await trainer.run()
        check_format(read_events(path))
        trace = read_trace(path)
        assert trace is not None
        assert len(trace.of("epoch")) == final.epoch


def test_a_killed_run_leaves_a_trace_that_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--total-agent-steps", "100000000", "--collection.backend", "inline", "--metrics.progress", "off"]
    arguments += ["--collection.num_environments", "4", "--collection.horizon", "32", "--metrics.trace"]
    command = [sys.executable, "-m", "orchestrator", "train", "--run-dir", str(folder), *arguments]
    with subprocess.Popen(command) as process:
        path = folder / "trace.json"
        while process.poll() is None and not (path.exists() and path.stat().st_size > 20_000):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(json.JSONDecodeError):
        json.loads(path.read_text())
    json.loads(path.read_text() + "]")  # as viewers do
    trace = read_trace(path)
    assert trace is not None
    assert [one.arguments["epoch"] for one in trace.of("epoch")][:3] == [1, 2, 3]


# The record by itself, at any length.


class HandClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record_epochs(trace: Trace, clock: HandClock, count: int, each: int = 1) -> str:
    """The text of `count` epochs of 4 minibatches, taken after every `each` epochs."""
    parts: list[str] = []
    for epoch in range(count):
        began = clock.now
        times = [began + 0.1 * place for place in range(7)]
        spans = [Span("prepare", times[0], times[1])]
        spans += [Span("minibatch", times[1 + mb], times[2 + mb], mb // 2, mb % 2) for mb in range(4)]
        spans.append(Span("publish", times[5], times[6]))
        clock.now = times[6]
        report = CollectReport(agent_steps=8, rollout_stats={}, began=began, ended=clock.now, interrupted=False)
        trace.collected(epoch, PolicyPoint(epoch), [report])
        trace.learned(
            epoch,
            epoch + 1,
            LearnReport(
                loss_stats={},
                update_epochs=2,
                minibatches=4,
                began=began,
                ended=clock.now,
                interrupted=False,
                spans=spans,
            ),
        )
        trace.epoch(epoch, began, clock.now)
        if epoch % each == each - 1:
            parts.append(trace.text(trace.take()))
    return "".join(parts)


FULL_DISK = """
import logging, resource, sys
from pathlib import Path

import anyio

from orchestrator import Hook, MetricsConfig, Trainer
from tests.orchestrator.training import small_config

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)


class Disk(Hook):
    # The limit on the size of files stands for the end of the disk.
    overflow = "block"

    async def on_epoch_end(self, state):
        await anyio.sleep(0)
        if state.epoch in (4, 14):
            resource.setrlimit(resource.RLIMIT_FSIZE, (Path(sys.argv[1], "trace.json").stat().st_size + 10, hard))
        elif state.epoch == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


metrics = MetricsConfig(trace=True, jsonl=False, progress="off")
config = small_config(epochs=int(sys.argv[2]), run_dir=Path(sys.argv[1]), metrics=metrics)
anyio.run(Trainer(config, hooks=[Disk()]).run)
"""


@pytest.mark.parametrize("epochs", [13, 30])
def test_a_full_disk_is_told_once_until_it_takes_the_trace_again(epochs: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path, str(epochs)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if " the trace " in line or "hook 'trace'" in line]
    often = 1 if epochs == 13 else 2
    assert sum("ERROR the trace can't be written: [Errno 27]" in line for line in told) == often
    assert sum("INFO the trace is written again" in line for line in told) == 1
    assert len(told) == often + 1, told
    events = read_events(tmp_path / "trace.json")
    check_format(events)
    recorded = [event["args"]["epoch"] for event in events if event.get("cat") == "epoch"]
    assert recorded == list(range(1, 14 if epochs == 13 else len(recorded) + 1))


def test_a_long_run_stays_below_the_size_and_is_there_to_its_end(tmp_path: Path) -> None:
    clock = HandClock()
    count, max_bytes = 5_000, 1_000_000
    text = record_epochs(Trace(max_bytes, clock), clock, count)
    assert max_bytes / 3 < len(text) <= max_bytes
    path = tmp_path / "trace.json"
    path.write_text(text + Trace.END)
    check_format(read_events(path))
    trace = read_trace(path)
    assert trace is not None
    epochs = [one.arguments["epoch"] for one in trace.of("epoch")]
    assert epochs[:8] == [*range(1, 9)]
    assert epochs == sorted(set(epochs))
    assert epochs[-1] > 0.9 * count
    assert trace.notes
    assert "epochs are recorded" in trace.notes[0]


def test_a_flood_between_two_epochs_stops_at_the_size_with_a_note(tmp_path: Path) -> None:
    clock = HandClock()
    trace = Trace(20_000, clock)
    for number in range(10_000):
        clock.now += 0.001
        trace.worker_call("worker", f"call {number}", clock.now - 0.001, clock.now)
    path = tmp_path / "trace.json"
    path.write_text(trace.text(trace.take()) + Trace.END)
    assert path.stat().st_size <= 20_000
    assert trace.full
    read = read_trace(path)
    assert read is not None
    assert read.notes[-1] == "the trace is full: nothing is recorded from here on"
    record_epochs(trace, clock, 20)
    assert not trace.take(), "nothing is kept for a file that takes no more"


def test_a_trace_cut_off_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    clock = HandClock()
    text = record_epochs(Trace(10**6, clock), clock, 2) + Trace.END
    events = json.loads(text)
    path = tmp_path / "trace.json"
    last = -1
    for length in range(2, len(text) + 1, 13):
        path.write_text(text[:length])
        read = read_events(path)
        assert read == events[: len(read)]
        assert len(read) >= last
        last = len(read)
    assert last >= len(events) - 1, "the bracket may be missing"


def test_arrows_join_a_publication_with_the_rollouts_that_use_it(tmp_path: Path) -> None:
    clock = HandClock()
    path = tmp_path / "trace.json"
    path.write_text(record_epochs(Trace(10**6, clock), clock, 3) + Trace.END)
    arrows = [(event["ph"], event["id"]) for event in read_events(path) if event["ph"] in "sf"]
    # Version 0 is published before anything is recorded.
    assert arrows == [(phase, f"policy {n} to epoch {n + 1}, collector 0") for n in (1, 2) for phase in "sf"]
