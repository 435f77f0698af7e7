"""The recall task can be solved with memory, and not without."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.environments.memory import make


@pytest.mark.parametrize(("cues", "delay"), [(2, 5), (4, 0)])
def test_only_an_answer_that_repeats_the_cue_is_rewarded(cues: int, delay: int) -> None:
    environment = make(cues, delay)
    for seed in range(10):
        for right in (True, False):
            observation, _ = environment.reset(seed=seed)
            cue = int(observation[:cues].argmax())
            rewards, ended, observations = [], False, []
            while not ended:
                assert environment.observation_space.contains(observation)
                action = cue if right else (cue + 1) % cues
                observations.append(observation)
                observation, reward, ended, truncated, _ = environment.step(np.int64(action))
                assert not truncated
                rewards.append(reward)
            assert rewards == [0.0] * (delay + 1) + [1.0 if right else -1.0]
            assert observations[0].sum() == 1.0
            # Nothing after the cue tells about it, and the last observation asks for the answer.
            assert [list(later[:cues]) for later in observations[1:]] == [[0.0] * cues] * (delay + 1)
            assert [later[-1] for later in observations] == [0.0] * (delay + 1) + [1.0]


def test_all_cues_are_shown() -> None:
    environment = make(3)
    environment.reset(seed=0)
    assert {int(environment.reset()[0].argmax()) for _ in range(50)} == {0, 1, 2}


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="cues is 1 and delay is 5"):
        make(cues=1)
