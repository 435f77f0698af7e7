"""Whatever a sink does, the caller goes on and is told once."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from orchestrator.metrics import MissingExtra, Record, RunInfo, sink
from orchestrator.metrics.sink import GuardedSink, ThreadedSink, require

RUN = RunInfo(run_id="run")
DEADLINE = 20.0


class Recording:
    """Keeps what it is given; fails in the functions, and at the epochs, that it is told to."""

    def __init__(self, *fails: object) -> None:
        self.fails = fails
        self.epochs: list[float | None] = []
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def note(self, what: str, epoch: object = None) -> None:
        self.gate.wait(DEADLINE)
        self.calls.append(what)
        self.threads.add(threading.get_ident())
        if what in self.fails or epoch in self.fails:
            raise ArithmeticError(f"{what} {epoch}")

    def open(self, run: RunInfo) -> None:
        self.note("open")

    def write(self, record: Record) -> None:
        self.note("write", record["epoch"])
        self.epochs.append(record["epoch"])

    def close(self) -> None:
        self.note("close")


def wait_until_done(threaded: ThreadedSink) -> None:
    deadline = time.monotonic() + DEADLINE
    while not threaded.done:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def feed(recording: Recording, epochs: int) -> None:
    threaded = ThreadedSink(recording)
    threaded.open(RUN)
    for epoch in range(1, epochs + 1):
        threaded.write({"epoch": epoch})
    threaded.close()
    wait_until_done(threaded)


def test_records_come_in_order_in_one_thread_that_is_not_the_callers() -> None:
    recording = Recording()
    feed(recording, 100)
    assert recording.epochs == list(range(1, 101))
    assert recording.calls == ["open", *["write"] * 100, "close"]
    assert len(recording.threads) == 1
    assert threading.get_ident() not in recording.threads


def test_a_sink_that_fails_is_reported_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    recording = Recording(2, 3, 4, "close")
    feed(recording, 6)
    assert recording.epochs == [1, 5, 6]
    first, lost = (record for record in caplog.records if record.name == "orchestrator.metrics")
    assert first.getMessage() == "the metrics sink Recording failed to write a record; the run continues"
    assert first.exc_info is not None
    assert str(first.exc_info[1]) == "write 2"
    assert lost.getMessage() == "the metrics sink Recording has lost 3 records"


def test_a_sink_that_cannot_be_opened_gets_no_records(caplog: pytest.LogCaptureFixture) -> None:
    recording = Recording("open")
    feed(recording, 3)
    assert recording.calls == ["open"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "failed to be opened" in caplog.text


def test_a_slow_sink_holds_nobody_up_and_loses_what_is_too_much(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "WAITING", 10)
    recording = Recording()
    recording.gate.clear()
    threaded = ThreadedSink(recording)
    threaded.open(RUN)
    for epoch in range(1, 31):
        threaded.write({"epoch": epoch})  # none of these waits
    threaded.close()
    assert not threaded.done
    recording.gate.set()
    wait_until_done(threaded)
    assert recording.epochs == list(range(1, 11))
    assert "has lost 20 records" in caplog.text


def test_a_guarded_sink_works_in_the_callers_thread() -> None:
    recording = Recording(2)
    guarded = GuardedSink(recording)
    guarded.open(RUN)
    for epoch in (1, 2, 3):
        guarded.write({"epoch": epoch})
    guarded.close()
    guarded.close()
    assert recording.epochs == [1, 3]
    assert recording.calls.count("close") == 1
    assert recording.threads == {threading.get_ident()}


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(MissingExtra, match=r"no_such_package is not installed: pip install '.*\[dashboards\]'"):
        require("no_such_package", "dashboards")
