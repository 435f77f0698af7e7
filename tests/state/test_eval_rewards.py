"""The summary of an evaluation: averages, metric names, immutability, save and load."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from state.eval_rewards import EvalRewardSummary

SCORES = {("easy", "maze"): 1.0, ("easy", "room"): 3.0, ("hard", "maze"): 10.0}


def summary() -> EvalRewardSummary:
    return EvalRewardSummary.from_simulations(SCORES, policy_version=7, epoch=6)


def test_a_category_scores_the_mean_of_its_simulations() -> None:
    assert summary().category_scores == {"easy": 2.0, "hard": 10.0}
    assert summary().simulation_scores == SCORES
    assert (summary().policy_version, summary().epoch) == (7, 6)


def test_the_averages_count_each_category_and_each_simulation_the_same() -> None:
    assert summary().avg_category_score == 6.0
    assert summary().avg_simulation_score == pytest.approx(14 / 3, rel=1e-15)


def test_nothing_evaluated_has_no_average_and_no_metric() -> None:
    empty = EvalRewardSummary()
    assert empty == EvalRewardSummary.from_simulations({})
    assert empty.avg_category_score is None
    assert empty.avg_simulation_score is None
    assert empty.metrics() == {}


def test_metrics_have_flat_names() -> None:
    assert summary().metrics() == {
        "eval/easy/maze": 1.0,
        "eval/easy/room": 3.0,
        "eval/hard/maze": 10.0,
        "eval/easy": 2.0,
        "eval/hard": 10.0,
        "eval/score": 6.0,
    }


def test_names_may_contain_slashes_as_environment_identifiers_do() -> None:
    summary = EvalRewardSummary.from_simulations({("ALE/Pong-v5", "ALE/Pong-v5"): 21.0})
    assert summary.metrics() == {"eval/ALE/Pong-v5/ALE/Pong-v5": 21, "eval/ALE/Pong-v5": 21, "eval/score": 21}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({("score", "maze"): 1.0}, "category 'score' and the average over the categories would both be 'eval/score'"),
        ({("a", "b"): 1.0, ("a/b", "c"): 1.0}, r"simulation \('a', 'b'\) and category 'a/b' would both be 'eval/a/b'"),
        ({("", "maze"): 1.0}, "category '' has an empty name"),
        ({("easy", ""): 1.0}, r"simulation \('easy', ''\) has an empty name"),
    ],
)
def test_names_that_give_no_metric_of_their_own_are_refused(scores: dict[tuple[str, str], float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalRewardSummary.from_simulations(scores)


def test_it_survives_json_and_pickle() -> None:
    assert EvalRewardSummary.from_dict(json.loads(json.dumps(summary().to_dict()))) == summary()
    assert EvalRewardSummary.from_dict(EvalRewardSummary().to_dict()) == EvalRewardSummary()
    assert pickle.loads(pickle.dumps(summary())) == summary()


def test_saved_scores_that_are_damaged_are_refused_by_name() -> None:
    damaged = summary().to_dict() | {"simulation_scores": {"easy": {"maze": "high"}}}
    with pytest.raises(ValueError, match="'easy/maze' is 'high'"):
        EvalRewardSummary.from_dict(damaged)


def test_it_cannot_be_changed_not_even_through_what_it_was_made_from() -> None:
    source = dict(SCORES)
    frozen: Any = EvalRewardSummary.from_simulations(source)
    source[("easy", "maze")] = 100.0
    assert frozen.simulation_scores == SCORES
    with pytest.raises(FrozenInstanceError):
        frozen.epoch = 1
    with pytest.raises(TypeError):
        frozen.category_scores["easy"] = 1.0
