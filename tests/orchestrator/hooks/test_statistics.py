from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import pytest

from orchestrator.hooks.meter import Meter
from orchestrator.hooks.statistics import HookStatistics
from tests.orchestrator.hooks.driving import AtEpochEnd, publish_epochs, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is; tests set the only element."""
    now = [0.0]
    monkeypatch.setattr("orchestrator.hooks.meter.time.monotonic", lambda: now[0])
    return now


def test_busy_time_includes_the_work_that_is_going_on(clock: list[float]) -> None:
    meter = Meter()
    meter.begin_work()
    clock[0] = 2.0
    assert meter.busy_seconds == 2.0
    meter.end_work()
    clock[0] = 10.0
    assert meter.busy_seconds == 2.0
    meter.begin_work()
    clock[0] = 11.0
    assert meter.busy_seconds == 3.0


def test_senders_that_wait_at_the_same_time_count_once(clock: list[float]) -> None:
    meter = Meter()
    meter.begin_block()
    clock[0] = 1.0
    meter.begin_block()
    clock[0] = 3.0
    meter.end_block()
    clock[0] = 4.0
    assert meter.blocked_seconds == 4.0
    meter.end_block()
    clock[0] = 9.0
    assert meter.blocked_seconds == 4.0
    meter.begin_block()
    clock[0] = 10.0
    meter.end_block()
    assert meter.blocked_seconds == 5.0


def test_work_that_nobody_waited_for_is_hidden(clock: list[float]) -> None:
    meter = Meter()
    meter.begin_work()
    clock[0] = 3.0
    meter.begin_block()
    clock[0] = 5.0
    meter.end_block()
    meter.end_work()
    read = meter.read(state="idle", queue=0, lag=0)
    assert isinstance(read, HookStatistics)
    assert (read.busy_seconds, read.blocked_seconds, read.hidden_seconds) == (5.0, 2.0, 3.0)
    meter.begin_block()
    clock[0] = 50.0
    assert meter.read(state="idle", queue=0, lag=0).hidden_seconds == 0.0, "held up by other things than work"


def test_an_observer_is_told_of_each_attempt_and_of_each_wait_once(clock: list[float]) -> None:
    meter = Meter()
    told: list[tuple[str, float, float]] = []
    meter.observe = lambda kind, began, ended, occurrence: told.append((kind, began, ended))
    meter.begin_work()
    clock[0] = 1.0
    meter.begin_block()
    clock[0] = 2.0
    meter.begin_block()  # another sender waits, too
    meter.end_work()
    clock[0] = 3.0
    meter.end_block()
    clock[0] = 5.0
    meter.end_block()
    assert told == [("work", 0.0, 2.0), ("block", 1.0, 5.0)]
    assert (meter.busy_seconds, meter.blocked_seconds) == (2.0, 4.0)


@pytest.fixture
def impatient_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.anyio
@pytest.mark.usefixtures("impatient_threads")
async def test_another_thread_always_reads_statistics_that_add_up() -> None:
    read: list[HookStatistics] = []
    errors: list[Exception] = []
    over = threading.Event()
    hook = AtEpochEnd("hook", max_lag=1)
    async with running(hook) as engine:

        def watch() -> None:
            try:
                while not over.is_set():
                    read.append(engine.statistics().hooks["hook"])
            except Exception as error:
                errors.append(error)

        watcher = threading.Thread(target=watch)
        watcher.start()
        epoch = 0
        while len(read) < 3000 and not errors:
            await publish_epochs(engine, *range(epoch, epoch + 3))
            await engine.drain(10)
            epoch += 3
        over.set()
        watcher.join()
    assert not errors
    for one in read:
        ended = one.handled + one.failed + one.coalesced + one.abandoned
        assert one.delivered == ended + one.queue + one.state.startswith("at "), one
    assert [one.busy_seconds for one in read] == sorted(one.busy_seconds for one in read)
