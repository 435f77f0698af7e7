"""The stopwatch under a clock set by hand: timers, laps, rates, remaining time, save and load."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from state.stopwatch import Stopwatch, StopwatchError, StopwatchReading


class HandClock:
    """A clock that moves only when told; its steps are exact in binary."""

    def __init__(self, origin: float = 1000.0) -> None:
        self.now = origin

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def stopwatch(clock: HandClock) -> Stopwatch:
    return Stopwatch(clock)


def test_a_timer_adds_up_the_time_in_its_context(stopwatch: Stopwatch, clock: HandClock) -> None:
    for seconds in (1.5, 2.0):
        with stopwatch("collect"):
            clock.move(seconds)
        clock.move(4.0)
    assert stopwatch.reading().timer_seconds == {"collect": 3.5}
    assert stopwatch.reading().seconds == 11.5


def test_start_and_stop_time_like_the_context(stopwatch: Stopwatch, clock: HandClock) -> None:
    stopwatch.start("learn")
    clock.move(2.0)
    stopwatch.stop("learn")
    clock.move(1.0)
    assert stopwatch.reading().timer_seconds == {"learn": 2.0}


def test_timers_of_different_names_may_overlap_in_any_way(stopwatch: Stopwatch, clock: HandClock) -> None:
    stopwatch.start("collect")
    clock.move(1.0)
    stopwatch.start("learn")
    clock.move(1.0)
    stopwatch.stop("collect")
    clock.move(1.0)
    stopwatch.stop("learn")
    assert stopwatch.reading().timer_seconds == {"collect": 2.0, "learn": 2.0}


def test_a_running_timer_is_read_up_to_now(stopwatch: Stopwatch, clock: HandClock) -> None:
    with stopwatch("collect"):
        clock.move(1.0)
        assert stopwatch.reading().timer_seconds == {"collect": 1.0}
        clock.move(1.0)
        assert stopwatch.reading().timer_seconds == {"collect": 2.0}
    assert stopwatch.reading().timer_seconds == {"collect": 2.0}


def test_a_timer_stops_when_its_context_raises(stopwatch: Stopwatch, clock: HandClock) -> None:
    def fail() -> None:
        clock.move(1.0)
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"), stopwatch("collect"):
        fail()
    clock.move(1.0)
    assert stopwatch.reading().timer_seconds == {"collect": 1.0}


def test_time_measured_elsewhere_is_added(stopwatch: Stopwatch, clock: HandClock) -> None:
    stopwatch.add("step", 3.0)
    clock.move(1.0)
    stopwatch.add("step", 0.5)
    reading = stopwatch.lap()
    assert reading.timer_seconds == reading.lap_timer_seconds == {"step": 3.5}
    assert reading.seconds == 1.0


def test_a_lap_has_its_own_times_beside_the_overall_ones(stopwatch: Stopwatch, clock: HandClock) -> None:
    with stopwatch("collect"):
        clock.move(2.0)
    clock.move(1.0)
    stopwatch.lap()
    with stopwatch("collect"):
        clock.move(4.0)
    reading = stopwatch.lap()
    assert reading.laps == 2
    assert (reading.lap_seconds, reading.seconds) == (4.0, 7.0)
    assert reading.lap_timer_seconds == {"collect": 4.0}
    assert reading.timer_seconds == {"collect": 6.0}


def test_the_last_closed_lap_stays_in_readings_while_the_next_is_open(stopwatch: Stopwatch, clock: HandClock) -> None:
    with stopwatch("collect"):
        clock.move(2.0)
    stopwatch.lap()
    with stopwatch("collect"):
        clock.move(8.0)
    reading = stopwatch.reading()
    assert (reading.laps, reading.lap_seconds) == (1, 2.0)
    assert reading.lap_timer_seconds == {"collect": 2.0}
    assert reading.timer_seconds == {"collect": 10.0}


def test_a_timer_that_runs_across_a_lap_is_split_between_the_laps(stopwatch: Stopwatch, clock: HandClock) -> None:
    clock.move(1.0)
    with stopwatch("collect"):
        clock.move(2.0)
        first = stopwatch.lap()
        clock.move(4.0)
    second = stopwatch.lap()
    assert first.lap_timer_seconds == {"collect": 2.0}
    assert second.lap_timer_seconds == {"collect": 4.0}
    assert second.timer_seconds == {"collect": 6.0}


def test_a_timer_or_counter_unused_in_a_lap_is_zero_in_it(stopwatch: Stopwatch, clock: HandClock) -> None:
    stopwatch.add("evaluate", 1.0)
    stopwatch.rate("episodes", 5)
    stopwatch.lap()
    clock.move(1.0)
    reading = stopwatch.lap()
    assert reading.lap_timer_seconds == {"evaluate": 0.0}
    assert reading.lap_counts == {"episodes": 0.0}
    assert reading.lap_rate("episodes") == 0.0


def test_rates_are_known_over_the_last_lap_and_overall(stopwatch: Stopwatch, clock: HandClock) -> None:
    stopwatch.rate("agent_steps", 100)
    clock.move(2.0)
    stopwatch.lap()
    stopwatch.rate("agent_steps", 200)
    stopwatch.rate("agent_steps", 100)
    clock.move(2.0)
    reading = stopwatch.lap()
    assert reading.lap_rate("agent_steps") == 150.0
    assert reading.rate("agent_steps") == 100.0
    assert reading.counts == {"agent_steps": 400}


def test_rates_are_none_until_something_is_known(stopwatch: Stopwatch, clock: HandClock) -> None:
    assert stopwatch.reading().rate("agent_steps") is None
    stopwatch.rate("agent_steps", 8)
    assert stopwatch.reading().rate("agent_steps") is None  # no time has passed
    clock.move(2.0)
    assert stopwatch.reading().rate("agent_steps") == 4.0
    assert stopwatch.reading().lap_rate("agent_steps") is None  # no lap was closed


def test_the_remaining_time_follows_the_overall_pace(stopwatch: Stopwatch, clock: HandClock) -> None:
    assert stopwatch.reading().remaining_seconds(0, 1000) is None
    assert stopwatch.reading().remaining_seconds(5, 1000) is None  # no time has passed
    clock.move(4.0)
    reading = stopwatch.reading()
    assert reading.remaining_seconds(0, 1000) is None
    assert reading.remaining_seconds(250, 1000) == 12.0
    assert reading.remaining_seconds(1000, 1000) == 0.0
    assert reading.remaining_seconds(1010, 1000) == 0.0


def test_starting_a_running_timer_names_it(stopwatch: Stopwatch, clock: HandClock) -> None:
    stopwatch.start("collect")
    clock.move(1.0)
    with pytest.raises(StopwatchError, match="timer 'collect' was started, but it is running already"):
        stopwatch.start("collect")
    with pytest.raises(StopwatchError, match="'collect'"), stopwatch("collect"):
        pass
    clock.move(1.0)
    stopwatch.stop("collect")
    assert stopwatch.reading().timer_seconds == {"collect": 2.0}


def test_stopping_a_timer_that_does_not_run_names_it_and_those_that_do(stopwatch: Stopwatch) -> None:
    with pytest.raises(StopwatchError, match="timer 'collect' was stopped, but it is not running; running: none"):
        stopwatch.stop("collect")
    stopwatch.start("learn")
    with pytest.raises(StopwatchError, match=r"timer 'collect' .* running: 'learn'"):
        stopwatch.stop("collect")


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_amounts_that_make_no_sense_are_refused_by_name(stopwatch: Stopwatch, amount: float) -> None:
    with pytest.raises(ValueError, match=r"timer 'step': .* expected a finite number"):
        stopwatch.add("step", amount)
    with pytest.raises(ValueError, match=r"counter 'agent_steps': .* expected a finite number"):
        stopwatch.rate("agent_steps", amount)
    assert stopwatch.reading() == StopwatchReading()


def test_a_resumed_run_goes_on_from_what_was_saved(stopwatch: Stopwatch, clock: HandClock) -> None:
    with stopwatch("collect"):
        clock.move(2.0)
    stopwatch.rate("agent_steps", 100)
    stopwatch.lap()
    clock.move(1.0)
    saved = json.loads(json.dumps(stopwatch.state_dict()))

    later = HandClock(origin=5.0)
    resumed = Stopwatch(later)
    later.move(64.0)
    resumed.load_state_dict(saved)
    assert resumed.reading() == stopwatch.reading()

    with resumed("collect"):
        later.move(5.0)
    resumed.rate("agent_steps", 60)
    reading = resumed.lap()
    assert reading.seconds == 8.0
    assert reading.timer_seconds == {"collect": 7.0}
    assert reading.rate("agent_steps") == 20.0
    assert (reading.laps, reading.lap_seconds) == (2, 5.0)
    assert reading.lap_timer_seconds == {"collect": 5.0}
    assert reading.remaining_seconds(160, 320) == 8.0


def test_a_lap_after_a_resumption_has_what_is_still_measured(stopwatch: Stopwatch) -> None:
    for name in ("learn_cell_0", "learn_cell_1"):
        stopwatch.add(name, 1.0)
        stopwatch.rate(name, 3.0)
    stopwatch.lap()
    resumed = Stopwatch(HandClock())
    resumed.load_state_dict(stopwatch.state_dict())
    resumed.add("learn_cell_0", 2.0)
    resumed.rate("learn_cell_0", 4.0)
    reading = resumed.lap()
    assert reading.lap_timer_seconds == {"learn_cell_0": 2.0}
    assert reading.lap_counts == {"learn_cell_0": 4.0}
    assert reading.timer_seconds == {"learn_cell_0": 3.0, "learn_cell_1": 1.0}
    assert resumed.lap().lap_timer_seconds == {"learn_cell_0": 0.0}


def test_the_time_of_a_timer_running_at_the_save_is_kept(stopwatch: Stopwatch, clock: HandClock) -> None:
    stopwatch.start("learn")
    clock.move(3.0)
    resumed = Stopwatch(HandClock())
    resumed.load_state_dict(stopwatch.state_dict())
    resumed.start("learn")
    resumed.stop("learn")
    assert resumed.reading().timer_seconds == {"learn": 3.0}


def test_a_reading_alone_is_enough_to_resume_from(stopwatch: Stopwatch, clock: HandClock) -> None:
    stopwatch.add("collect", 1.0)
    clock.move(2.0)
    reading = stopwatch.lap()
    assert StopwatchReading.from_dict(reading.to_dict()) == reading
    resumed = Stopwatch(HandClock())
    resumed.load_state_dict(reading.to_dict())
    assert resumed.reading() == reading


def test_loading_while_a_timer_runs_names_the_timer_and_changes_nothing(stopwatch: Stopwatch, clock: HandClock) -> None:
    saved = stopwatch.state_dict()
    with stopwatch("collect"):
        clock.move(1.0)
        with pytest.raises(StopwatchError, match="running: 'collect'"):
            stopwatch.load_state_dict(saved)
    assert stopwatch.reading().timer_seconds == {"collect": 1.0}


def test_a_saved_state_that_is_damaged_is_refused_by_name_and_changes_nothing(
    stopwatch: Stopwatch, clock: HandClock
) -> None:
    clock.move(1.0)
    damaged = stopwatch.state_dict() | {"laps": "three"}
    with pytest.raises(ValueError, match="saved stopwatch: 'laps' is 'three', expected an integer"):
        stopwatch.load_state_dict(damaged)
    assert stopwatch.reading().seconds == 1.0


def test_a_reading_is_immutable_and_can_be_pickled(stopwatch: Stopwatch, clock: HandClock) -> None:
    with stopwatch("collect"):
        clock.move(1.0)
    stopwatch.rate("agent_steps", 10)
    reading: Any = stopwatch.lap()
    kept = pickle.loads(pickle.dumps(reading))
    assert kept == reading

    stopwatch.add("collect", 5.0)
    stopwatch.rate("agent_steps", 5)
    stopwatch.lap()
    assert reading == kept
    with pytest.raises(FrozenInstanceError):
        reading.seconds = 0.0
    for name in ("timer_seconds", "counts", "lap_timer_seconds", "lap_counts"):
        with pytest.raises(TypeError):
            getattr(reading, name)["collect"] = 0.0


def test_the_default_clock_does_not_go_backwards() -> None:
    stopwatch = Stopwatch()
    with stopwatch("work"):
        first = stopwatch.reading().seconds
    assert 0.0 <= first <= stopwatch.reading().seconds


def test_its_repr_tells_the_time_the_laps_and_what_runs(stopwatch: Stopwatch, clock: HandClock) -> None:
    clock.move(1.5)
    stopwatch.lap()
    stopwatch.start("learn")
    assert repr(stopwatch) == "<Stopwatch 1.500 s, 1 laps, running: learn>"
