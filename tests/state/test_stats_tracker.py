"""Episode statistics: what is gathered from info dictionaries, the window, the totals, save and load."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from state.stats_tracker import StatsTracker, accumulate_rollout_stats


def accumulated(*infos: Mapping[str, object]) -> dict[str, list[float]]:
    stats: dict[str, list[float]] = {}
    accumulate_rollout_stats(infos, stats)
    return stats


def test_nested_info_dictionaries_become_keys_joined_by_slashes() -> None:
    first = {"score": 1, "agent": {"food": 2.5, "per": {"kill": 3}}}
    second = {"score": 4, "agent": {"food": 5.0}}
    assert accumulated(first, second) == {"score": [1, 4], "agent/food": [2.5, 5], "agent/per/kill": [3]}


def test_statistics_are_appended_to_those_already_gathered() -> None:
    stats = {"score": [1.0]}
    accumulate_rollout_stats([{"score": 2}], stats)
    accumulate_rollout_stats([], stats)
    assert stats == {"score": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        (True, 1.0),
        (2.5, 2.5),
        (np.float32(1.5), 1.5),
        (np.int64(-2), -2.0),
        (np.bool_(True), 1.0),
        (np.array(4), 4.0),
        (np.array([4.5], dtype=np.float32), 4.5),
        (np.array([[True]]), 1.0),
        (torch.tensor(6), 6.0),
        (torch.tensor([[7.5]], requires_grad=True), 7.5),
        (torch.tensor(True), 1.0),
    ],
)
def test_every_single_number_becomes_a_float(value: object, expected: float) -> None:
    stats = accumulated({"x": value})
    assert stats == {"x": [expected]}
    assert type(stats["x"][0]) is float


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        b"bytes",
        1 + 2j,
        [1.0],
        (1.0,),
        {},
        10**400,
        object(),
        np.zeros(2),
        np.zeros(0),
        np.array("text"),
        np.array([None]),
        np.datetime64("2020-01-01"),
        np.complex64(1),
        torch.zeros(2, 1),
        torch.zeros(0),
        gymnasium.spaces.Box(0, 1, (1,)),
    ],
)
def test_what_is_not_a_single_number_is_ignored(value: object) -> None:
    assert accumulated({"x": value, "nested": {"x": value}, "y": 1}) == {"y": [1.0]}


def test_the_masks_of_vector_environments_are_ignored_at_every_depth() -> None:
    assert accumulated({"_x": True, "episode": {"r": 1.0, "_r": True}, "_nested": {"x": 1}}) == {"episode/r": [1.0]}


def test_keys_that_are_no_strings_are_named_by_their_text() -> None:
    agents: dict[Any, object] = {0: {"score": 1}, 1: {"score": 2}}
    assert accumulated({"agents": agents}) == {"agents/0/score": [1.0], "agents/1/score": [2.0]}


def test_the_statistics_of_gymnasiums_episode_recorder_are_understood() -> None:
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1", max_episode_steps=3))
    env.reset(seed=0)
    info: dict[str, Any] = {}
    for action in (0, 1, 0):
        *_, info = env.step(action)
    stats = accumulated(info)
    assert stats["episode/r"] == stats["episode/l"] == [3.0]


def test_a_new_tracker_knows_nothing() -> None:
    tracker = StatsTracker()
    assert tracker.rollout == tracker.means() == {}
    assert tracker.recent_mean("episode_return") is tracker.recent_mean("episode_length") is None
    assert (tracker.episodes, tracker.agent_steps) == (0, 0)


def test_means_are_over_the_episodes_of_the_latest_rollout() -> None:
    tracker = StatsTracker().with_rollout({"episode_return": [100.0], "old": [1.0]}, 10)
    tracker = tracker.with_rollout({"episode_return": [1.0, 2.0, 6.0], "agent/food": [5.0], "none": []}, 10)
    assert tracker.rollout == {"episode_return": (1.0, 2.0, 6.0), "agent/food": (5.0,), "none": ()}
    assert tracker.means() == {"episode_return": 3.0, "agent/food": 5.0}


def test_totals_add_up_over_the_rollouts() -> None:
    tracker = StatsTracker().with_rollout({"episode_return": [1.0, 2.0], "episode_length": [3.0, 4.0]}, 64)
    tracker = tracker.with_rollout({}, 64)
    tracker = tracker.with_rollout({"episode_return": [5.0], "episode_length": [6.0]}, 60)
    assert (tracker.episodes, tracker.agent_steps) == (3, 188)
    assert tracker.recent_mean("episode_return") == pytest.approx(8 / 3, rel=1e-15)
    assert tracker.recent_mean("episode_length") == pytest.approx(13 / 3, rel=1e-15)


def test_a_rollout_without_an_ended_episode_leaves_the_window_as_it_is() -> None:
    tracker = StatsTracker().with_rollout({"episode_return": [4.0], "episode_length": [8.0]}, 8).with_rollout({}, 8)
    assert tracker.means() == {}
    assert tracker.recent_mean("episode_return") == 4.0
    assert tracker.recent_mean("episode_length") == 8.0


@given(
    rollouts=st.lists(st.lists(st.integers(-1000, 1000), max_size=8), max_size=12),
    window=st.integers(1, 12),
)
def test_the_recent_mean_is_over_the_last_episodes_of_the_window(rollouts: list[list[int]], window: int) -> None:
    tracker = StatsTracker(window=window)
    for returns in rollouts:
        tracker = tracker.with_rollout({"episode_return": returns, "episode_length": returns}, len(returns))
    last = [value for returns in rollouts for value in returns][-window:]
    expected = pytest.approx(np.mean(np.array(last, dtype=np.float64))) if last else None
    assert tracker.recent_mean("episode_return") == expected
    assert tracker.recent_mean("episode_length") == expected


def test_the_window_is_a_hundred_episodes_unless_set() -> None:
    tracker = StatsTracker().with_rollout({"episode_return": range(150)}, 150)
    assert tracker.recent_returns == tuple(map(float, range(50, 150)))


def test_a_window_below_one_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="window of a StatsTracker is 0 episodes, expected at least 1"):
        StatsTracker(window=0)


def test_asking_for_the_window_of_another_key_names_those_that_have_one() -> None:
    with pytest.raises(ValueError, match="'episode_retrun', only of 'episode_return' and 'episode_length'"):
        StatsTracker().recent_mean("episode_retrun")


def test_returns_that_diverged_do_not_stop_the_statistics() -> None:
    tracker = StatsTracker().with_rollout({"episode_return": [math.inf, -math.inf]}, 2)
    assert math.isnan(tracker.means()["episode_return"])
    again = StatsTracker.from_dict(json.loads(json.dumps(tracker.to_dict())))
    assert again.recent_returns == (math.inf, -math.inf)


def test_arrays_are_taken_as_statistics_and_kept_as_plain_floats() -> None:
    returns: Any = np.array([1, 2], dtype=np.float32)
    tracker = StatsTracker().with_rollout({"episode_return": returns}, 2)
    assert all(type(value) is float for value in (*tracker.rollout["episode_return"], *tracker.recent_returns))
    assert tracker.episodes == 2


def filled() -> StatsTracker:
    stats = {"episode_return": [1.0, 2.5], "episode_length": [3, 4], "agent/food": [0.1]}
    return StatsTracker(window=3).with_rollout(stats, 7).with_rollout(stats, 7)


def test_it_survives_json_and_pickle() -> None:
    assert StatsTracker.from_dict(json.loads(json.dumps(filled().to_dict()))) == filled()
    assert StatsTracker.from_dict(StatsTracker().to_dict()) == StatsTracker()
    assert pickle.loads(pickle.dumps(filled())) == filled()


def test_saved_statistics_that_are_damaged_are_refused_by_name() -> None:
    damaged = filled().to_dict()
    del damaged["episodes"]
    with pytest.raises(ValueError, match="saved episode statistics: 'episodes' is missing"):
        StatsTracker.from_dict(damaged)


def test_it_cannot_be_changed_not_even_through_what_it_was_given() -> None:
    returns = [1.0]
    tracker: Any = StatsTracker()
    following: Any = tracker.with_rollout({"episode_return": returns}, 1)
    returns.append(2.0)
    assert tracker == StatsTracker()
    assert following.rollout == {"episode_return": (1.0,)}
    with pytest.raises(FrozenInstanceError):
        following.episodes = 5
    with pytest.raises(TypeError):
        following.rollout["episode_return"] = ()
    with pytest.raises(TypeError):
        following.means()["episode_return"] = 1.0
