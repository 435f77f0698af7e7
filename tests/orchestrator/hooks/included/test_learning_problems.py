"""Which sequences of statistics count as problems of learning, and what is said of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator import CollectionConfig, LearningConfig, LossesConfig, PolicyConfig, TrainerConfig
from orchestrator.hooks.included.learning_problems import RECOVERY, ProblemDetector, Reading
from orchestrator.hooks.included.learning_watch import has_one_observation

STEPS = 8192
CONFIG = TrainerConfig(total_agent_steps=100 * STEPS)


def returns(mean: float) -> tuple[float, ...]:
    """Noisy, and the same each time."""
    return tuple(mean * (1 + 0.3 * math.sin(episode)) for episode in range(40))


def healthy(epoch: int) -> Reading:
    """As CartPole is learned."""
    return Reading(
        agent_step=(epoch + 1) * STEPS,
        returns=returns(min(500, 20 + 15 * epoch)),
        entropy=max(0.3, 0.69 - 0.02 * epoch),
        approx_kl=0.01,
        clip_fraction=0.1,
        value_loss=40.0,
        explained_variance=0.3,
        gradient_norm=20.0,
    )


def stuck(epoch: int, **different: Any) -> Reading:
    """Healthy but for the return, which stays, and what is `different`."""
    return replace(healthy(epoch), **{"returns": returns(20), **different})


def found(readings: list[Reading], config: TrainerConfig = CONFIG, *, fresh: bool = True) -> list[tuple[int, str, str]]:
    """Epoch, kind and text of each warning."""
    detector = ProblemDetector(config, fresh=fresh)
    return [
        (epoch, kind, text)
        for epoch, reading in enumerate(readings)
        for kind, text in detector.observe(reading).items()
    ]


def test_a_run_that_learns_gives_no_warning() -> None:
    assert found([healthy(epoch) for epoch in range(100)]) == []


@pytest.mark.parametrize("pause", [1, 3, 8, 30, 76])
def test_what_is_remembered_makes_no_difference(pause: int) -> None:
    readings = [stuck(epoch, entropy=0.001 if 5 < epoch < 12 else 0.5, approx_kl=0.5) for epoch in range(100)]
    detector = ProblemDetector(CONFIG)
    warned: list[tuple[int, str, str]] = []
    for epoch, reading in enumerate(readings):
        if epoch == pause:
            memory = json.loads(json.dumps(detector.memory()))
            detector = ProblemDetector(CONFIG, fresh=False)
            detector.recall(memory)
            assert detector.memory() == memory
        warned += [(epoch, kind, text) for kind, text in detector.observe(reading).items()]
    assert warned == found(readings)
    assert {kind for _, kind, _ in warned} == {"entropy", "policy_change", "return"}


@pytest.mark.parametrize(
    ("kind", "different", "config", "cure"),
    [
        ("entropy", {"entropy": 0.001}, CONFIG, "learning.learning_rate to 0.0003 (now 0.0025)"),
        (
            "entropy",
            {"entropy": 0.001},
            replace(CONFIG, losses=LossesConfig(entropy_coefficient=0.0)),
            "losses.entropy_coefficient to 0.01",
        ),
        ("entropy", {"entropy": -4.0, "continuous": True}, CONFIG, "learning.learning_rate"),
        ("policy_change", {"approx_kl": 3.0}, CONFIG, "losses.target_kl to 0.02"),
        ("policy_change", {"approx_kl": None, "clip_fraction": 0.9}, CONFIG, "learning.learning_rate"),
        (
            "policy_change",
            {"approx_kl": 3.0},
            replace(CONFIG, learning=LearningConfig(update_epochs=50)),
            "learning.update_epochs to 4 (now 50)",
        ),
        ("value_loss", {"value_loss": 1e6, "explained_variance": -0.5}, CONFIG, "learning.learning_rate"),
        ("explained_variance", {"explained_variance": -8.0}, CONFIG, "learning.learning_rate"),
        ("gradient_norm", {"gradient_norm": 300.0}, CONFIG, "losses.value_coefficient"),
        ("observations", {"one_observation": True}, CONFIG, "what the environment and its wrappers return"),
        (
            "gradient_norm",
            {"gradient_norm": 300.0},
            replace(CONFIG, policy=PolicyConfig(normalize_rewards=False)),
            "policy.normalize_rewards to true",
        ),
    ],
)
def test_each_problem_is_reported_once_with_the_setting_that_cures_it(
    kind: str, different: dict[str, Any], config: TrainerConfig, cure: str
) -> None:
    readings = [stuck(epoch) for epoch in range(6)] + [stuck(epoch, **different) for epoch in range(6, 45)]
    [(epoch, reported, text)] = found(readings, config)
    assert reported == kind
    assert cure in text
    assert epoch > 6, "one epoch proves nothing"


def test_what_a_good_policy_shows_is_no_problem() -> None:
    sure = {"entropy": 0.0001, "explained_variance": -20.0, "gradient_norm": 1000.0, "approx_kl": 1.0}
    readings = [healthy(epoch) for epoch in range(30)]
    readings += [replace(healthy(epoch), **sure) for epoch in range(30, 100)]
    assert found(readings) == []


def test_a_policy_that_loses_what_it_had_learned_and_stops_exploring_is_reported() -> None:
    readings = [healthy(epoch) for epoch in range(30)] + [stuck(epoch, entropy=0.001) for epoch in range(30, 60)]
    assert [kind for _, kind, _ in found(readings)] == ["entropy"]


def test_single_epochs_are_no_problem() -> None:
    spikes = {"approx_kl": 5.0, "explained_variance": -20.0, "gradient_norm": 1e4, "entropy": 0.0, "value_loss": 1e5}
    assert found([stuck(epoch, **(spikes if epoch % 3 == 2 else {})) for epoch in range(45)]) == []


def test_a_problem_is_reported_again_only_after_a_recovery() -> None:
    bad = [stuck(epoch, approx_kl=3.0) for epoch in range(8)]
    short, long = ([stuck(epoch) for epoch in range(count)] for count in (RECOVERY - 1, RECOVERY))
    assert len(found(bad + short + bad)) == 1
    assert [kind for _, kind, _ in found(bad + long + bad)] == ["policy_change"] * 2
    detector = ProblemDetector(CONFIG)
    for reading in bad:
        detector.observe(reading)
    assert set(detector.current) == {"policy_change"}
    for reading in long:
        detector.observe(reading)
    assert detector.current == {}


def test_a_return_that_never_moves_is_reported_late_in_the_run() -> None:
    [(epoch, kind, text)] = found([stuck(epoch) for epoch in range(100)])
    assert (epoch, kind) == (74, "return")
    assert "has not moved" in text
    assert "rewards that do not depend on what is done" in text
    assert "losses.entropy_coefficient to 0.03 (now 0.01)" in text


def test_a_return_that_may_have_begun_to_move_is_no_problem_yet() -> None:
    """As in FrozenLake, where late in a short run 15 of 100 episodes succeed, of the first 100 one."""
    first, later = (1.0,) + (0.0,) * 99, (1.0,) * 15 + (0.0,) * 85
    assert found([stuck(epoch, returns=first if epoch == 0 else later) for epoch in range(100)]) == []
    never = (1.0,) * 3 + (0.0,) * 97
    [(_, _, text)] = found([stuck(epoch, returns=first if epoch == 0 else never) for epoch in range(100)])
    assert "has not moved" in text


def test_a_return_that_is_worse_than_at_the_start_is_called_that() -> None:
    [(_, _, text)] = found([stuck(epoch, returns=returns(20 if epoch < 3 else 5)) for epoch in range(80)])
    assert "is worse than at the start: " in text
    assert "updates that are too large" in text


def test_episodes_that_all_have_one_return_point_to_the_rewards() -> None:
    meaningless = {"returns": (0.0,) * 40, "explained_variance": -9.0}
    [(_, _, text)] = found([stuck(epoch, **meaningless) for epoch in range(5, 80)])
    assert "check that the environment's rewards depend on what is done" in text


@pytest.mark.parametrize("value", [-0.1, 0.1, 1 / 3, 1092.0991845742992])
def test_means_that_differ_by_rounding_alone_are_the_same(value: float) -> None:
    detector = ProblemDetector(CONFIG)
    for epoch in range(80):
        detector.observe(stuck(epoch, returns=(value,) * (32 if epoch == 0 else 40)))
    assert detector.verdict == "no better than at the start"
    assert "has not moved" in detector.current["return"]


def test_late_success_ends_the_problem_and_early_success_that_is_lost_is_called_that() -> None:
    detector = ProblemDetector(CONFIG)
    for epoch in range(80):
        detector.observe(stuck(epoch))
    assert set(detector.current) == {"return"}
    for epoch in range(80, 100):
        detector.observe(replace(healthy(epoch), returns=returns(200)))
    assert detector.current == {}
    early = [healthy(epoch) for epoch in range(30)] + [stuck(epoch) for epoch in range(30, 100)]
    [(_, kind, text)] = found(early)
    assert kind == "return"
    assert "the return has fallen back to what it was at the start: 20.2 over the last 100 episodes" in text
    assert "updates that are too large, or too little exploration: set learning.learning_rate to 0.0003" in text


def test_a_resumed_run_is_not_compared_with_its_first_episodes() -> None:
    assert found([stuck(epoch) for epoch in range(100)], fresh=False) == []


def test_a_run_in_which_no_episode_ends_says_so() -> None:
    readings = [stuck(epoch, returns=()) for epoch in range(100)]
    [(epoch, kind, text)] = found(readings)
    assert (epoch, kind) == (74, "episodes")
    assert "set max_episode_steps" in text.lower()
    assert text.endswith("(experience/reward, which policy.normalize_rewards scales)")
    [(_, _, text)] = found(readings, replace(CONFIG, policy=replace(CONFIG.policy, normalize_rewards=False)))
    assert text.endswith("(experience/reward)")
    one = replace(CONFIG, collection=CollectionConfig(num_environments=1))
    assert found(readings, one)[0][0] == 1, "10,000 steps of one environment are many"
    late = [replace(healthy(epoch), returns=returns(15 * epoch - 500)) for epoch in range(40, 100)]
    assert found([*readings[:40], *late]) == []


def test_observations_are_looked_at_in_valid_steps_until_another_one_comes() -> None:
    arrays = {"observation/a": np.full((2, 40, 3), 0.5, np.float32), "valid": np.zeros((2, 40), bool)}
    assert has_one_observation(arrays), "where no step is valid, there is no other"
    arrays["valid"][:] = True
    arrays["valid"][0, 0] = False
    arrays["observation/a"][0, 0] = 7.0
    assert has_one_observation(arrays)
    arrays["observation/a"][1, 39, 2] = 0.25
    assert not has_one_observation(arrays)


def test_unknown_numbers_are_no_problem() -> None:
    unknown = {
        name: math.nan if odd else None
        for odd, name in enumerate(("entropy", "approx_kl", "value_loss", "explained_variance", "gradient_norm"))
    }
    assert found([stuck(epoch, clip_fraction=None, **unknown) for epoch in range(45)]) == []
    assert found([stuck(epoch, entropy=0.0) for epoch in range(45)]) == [], "only one action is possible"


def test_gradients_that_are_not_clipped_are_no_problem() -> None:
    config = replace(CONFIG, learning=LearningConfig(max_grad_norm=math.inf))
    assert found([stuck(epoch, gradient_norm=1e6) for epoch in range(45)], config) == []
