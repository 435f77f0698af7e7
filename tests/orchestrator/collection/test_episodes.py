"""Returns and lengths are those of adding up step by step."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.collection.episodes import EpisodeCounter
from orchestrator.environments.agents import agent_type


@pytest.mark.parametrize("chance", [0.0, 0.05, 0.5, 1.0])
def test_episodes_over_several_rollouts_agree_with_adding_up_step_by_step(chance: float) -> None:
    random = np.random.default_rng(0)
    counter = EpisodeCounter(4)
    totals, lengths, resetting = [0.0] * 4, [0] * 4, [False] * 4
    for steps in (1, 0, 7, 30, 100):
        reward = random.normal(size=(steps, 4)).astype(np.float32)
        ended, valid = np.zeros((steps, 4), np.bool_), np.ones((steps, 4), np.bool_)
        expected = []
        for step in range(steps):
            for copy in range(4):
                if resetting[copy] and random.random() < 0.5:  # some environments spend a step on resetting
                    valid[step, copy] = resetting[copy] = False
                    continue
                totals[copy] += float(reward[step, copy])
                lengths[copy] += 1
                ended[step, copy] = resetting[copy] = random.random() < chance
                if ended[step, copy]:
                    expected.append((totals[copy], lengths[copy]))
                    totals[copy], lengths[copy] = 0.0, 0
        found = counter.add(reward, ended, valid, ended)
        np.testing.assert_allclose(found["episode_return"], [one[0] for one in expected], atol=1e-9)
        assert found["episode_length"] == [one[1] for one in expected]
        np.testing.assert_allclose(counter.returns, totals, atol=1e-9)
        assert counter.lengths.tolist() == lengths


def test_agents_with_names_are_also_counted_by_type_and_games_as_teams() -> None:
    counter = EpisodeCounter(2, ("red_0", "red_1", "blue_0"))
    # The game in the first rows: red_0 is out after the first step, the game ends with the third.
    reward = np.tile(np.array([1.0, 10.0, 100.0, 2.0, 20.0, 200.0], np.float32), (3, 1))
    valid = np.ones((3, 6), np.bool_)
    valid[1:, 0] = False
    ended, games_ended = np.zeros((3, 6), np.bool_), np.zeros((3, 2), np.bool_)
    ended[0, 0] = ended[2, 1] = ended[2, 2] = games_ended[2, 0] = True
    assert counter.add(reward[:2], ended[:2], valid[:2], games_ended[:2]) == {
        "episode_return": [1.0],
        "episode_length": [1.0],
        "episode_return/red": [1.0],
        "episode_return/blue": [],
        "team_return": [],
    }
    assert counter.add(reward[2:], ended[2:], valid[2:], games_ended[2:]) == {
        "episode_return": [30.0, 300.0],
        "episode_length": [3.0, 3.0],
        "episode_return/red": [30.0],
        "episode_return/blue": [300.0],
        "team_return": [331.0],
    }
    assert counter.returns.tolist() == [0.0, 0.0, 0.0, 6.0, 60.0, 600.0]
    assert counter.team_returns.tolist() == [0.0, 666.0]


def test_lives_of_agents_are_counted_by_games_where_one_comes_back() -> None:
    counter = EpisodeCounter(2, ("a_0", "a_1", "a_2"))
    valid, none = np.ones((2, 6), np.bool_), np.zeros((2, 2), np.bool_)
    # The first game: a_0 dies twice before the end, a_1 once at it, a_2 never comes.
    ended, games_ended = np.zeros((2, 6), np.bool_), none.copy()
    ended[0, 0] = ended[0, 3] = True
    assert "agent_lives" not in counter.add(np.zeros((2, 6), np.float32), ended, valid, none)
    ended[1, 0] = ended[1, 1] = games_ended[1, 0] = True
    assert counter.add(np.zeros((2, 6), np.float32), ended, valid, games_ended)["agent_lives"] == [3.0, 1.0]
    assert counter.lives.tolist() == [0, 0, 0, 2, 0, 0]


@pytest.mark.parametrize(
    ("name", "kind"), [("red_0", "red"), ("red", "red"), ("drone12", "drone"), ("a_b_3", "a_b"), ("7", "agent")]
)
def test_a_type_is_a_name_without_its_number(name: str, kind: str) -> None:
    assert agent_type(name) == kind
