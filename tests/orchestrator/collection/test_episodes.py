"""Returns and lengths are those of adding up step by step."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.collection.episodes import EpisodeCounter


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
        found_returns, found_lengths = counter.add(reward, ended, valid)
        np.testing.assert_allclose(found_returns, [one[0] for one in expected], atol=1e-9)
        assert found_lengths == [one[1] for one in expected]
        np.testing.assert_allclose(counter.returns, totals, atol=1e-9)
        assert counter.lengths.tolist() == lengths
