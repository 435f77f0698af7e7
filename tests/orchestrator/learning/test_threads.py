"""How many threads a learner has where nobody says."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from orchestrator import LearningConfig, PolicyConfig, TrainerConfig
from orchestrator.learning.threads import threads_for
from orchestrator.policies import build_policy
from orchestrator.policies.network import Spaces


@pytest.mark.parametrize(
    ("staleness", "learning", "rows", "threads"),
    [
        (1, LearningConfig(), 8, 1),  # not worth a second one
        (1, LearningConfig(), 256, 4),
        (1, LearningConfig(shards=2), 256, 1),  # or the bits would depend on the number of cells
        (0, LearningConfig(precision="bfloat16"), 256, 4),
        (1, LearningConfig(precision="bfloat16"), 256, 3),  # a core is the collector's
    ],
)
def test_a_learner_has_threads_for_what_it_computes(
    staleness: float, learning: LearningConfig, rows: int, threads: int
) -> None:
    config = TrainerConfig(staleness=staleness, learning=learning, policy=PolicyConfig(network="cnn"))
    spaces = Spaces(Box(0, 255, (84, 84, 4), np.uint8), Discrete(6))
    policy = build_policy(config.policy, spaces, seed=1)
    assert threads_for(policy, config, rows, cores=4) == threads
    assert threads_for(policy, config, rows, cores=1) == 1
