"""What is recorded and learned from is what the policy did and what the environment returned at that moment, whatever
environments, networks and losses do with the memory that passes through their hands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import numpy as np
import pytest

from losses import Loss, ppo_losses
from orchestrator import EvaluationConfig, Hook, LearningConfig, PolicyConfig, Trainer, TrainerConfig
from state import ExperienceSpecError, TrainerState
from tests.orchestrator.careless import Asking, Overwriting, OverwritingEvaluation
from tests.orchestrator.training import small_config

pytestmark = pytest.mark.slow

CARELESS = "tests.orchestrator.careless:make_careless"
NETWORKS = "tests.orchestrator.careless:"


class Look(Hook):
    """Copies what it is shown of every epoch."""

    def __init__(self) -> None:
        self.experience: list[dict[str, np.ndarray[Any, Any]]] = []
        self.stats: list[dict[str, tuple[float, ...]]] = []

    async def on_rollout_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        assert state.rollout_stats is not None
        self.experience.append({name: np.array(array) for name, array in state.experience.items()})
        self.stats.append(dict(state.rollout_stats))


def trained(config: TrainerConfig, losses: tuple[Loss, ...] | None = None) -> tuple[Look, TrainerState]:
    look = Look()
    return look, anyio.run(Trainer(config, hooks=[look], losses=losses).run)


def assert_same(one: tuple[Look, TrainerState], other: tuple[Look, TrainerState]) -> None:
    """The same experience, statistics, weights and scores."""
    looks, states = (one[0], other[0]), (one[1], other[1])
    assert len(looks[0].experience) >= 3
    for first, second in zip(looks[0].experience, looks[1].experience, strict=True):
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert looks[0].stats == looks[1].stats
    policies = [state.policy for state in states]
    assert policies[0] is not None
    assert policies[1] is not None
    for name, tensor in policies[0].tensors.items():
        np.testing.assert_array_equal(tensor, policies[1].tensors[name], err_msg=name)
    assert states[0].eval_scores == states[1].eval_scores


def config_with(careless: bool, environment: str = CARELESS, **settings: Any) -> TrainerConfig:
    options = settings.pop("options", {})
    mode = settings.pop("mode", "sync")
    config = small_config(epochs=4, num_environments=2, horizon=24, environment=environment, **settings)
    collection = replace(config.collection, mode=mode, environment_options={"careless": careless, **options})
    return replace(config, collection=collection)


@pytest.mark.parametrize("action", ["discrete", "multidiscrete", "box", "bounded", "doubles"])
def test_an_environment_may_change_its_actions_and_reuse_what_it_returns(action: str) -> None:
    def run(careless: bool) -> tuple[Look, TrainerState]:
        evaluation = EvaluationConfig(every=1, episodes=3, num_environments=2)
        config = config_with(careless, options={"action": action}, evaluation=evaluation)
        return trained(config, (*ppo_losses(), Asking("more/hint")))

    careful, careless = run(False), run(True)
    assert_same(careful, careless)
    assert careless[1].eval_scores is not None
    for experience, stats in zip(careless[0].experience, careless[0].stats, strict=True):
        np.testing.assert_array_equal(experience["more/hint"], experience["reward"])  # also where an episode ends
        assert len(stats["score"]) == len(stats["more/hint"]) == len(stats["episode_return"])


def test_the_infos_of_an_environment_that_has_one_for_all_are_those_of_each_step() -> None:
    look, _ = trained(config_with(True), (*ppo_losses(), Asking("score", "int64")))
    for segment in np.concatenate([experience["score"] for experience in look.experience], axis=1):
        episodes, steps = segment // 100, segment % 100
        begins = np.flatnonzero(steps == 1)
        assert len(begins) > 4
        assert (np.diff(steps)[np.diff(episodes) == 0] == 1).all()
    scores = [score for stats in look.stats for score in stats["score"]]
    assert scores == [100 * episode + 7 + episode % 3 for episode in (int(score) // 100 for score in scores)]


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_a_vector_environment_may_change_its_actions_and_reuse_what_it_returns(mode: str) -> None:
    def run(careless: bool) -> tuple[Look, TrainerState]:
        config = config_with(careless, f"tests.orchestrator.careless:Careless/{mode}-v0", mode="native")
        return trained(config, (*ppo_losses(), Asking("hint")))

    careful, careless = run(False), run(True)
    assert_same(careful, careless)
    for experience in careless[0].experience:
        np.testing.assert_array_equal(experience["hint"], experience["reward"])


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_each_environment_is_made_with_options_of_its_own(backend: Any) -> None:
    config = config_with(
        True, options={"options": {"levels": [1, 2]}}, backend=backend, evaluation=EvaluationConfig(every=1, episodes=2)
    )
    trained(config)
    assert config.collection.environment_options["options"] == {"levels": [1, 2]}


@pytest.mark.parametrize(
    ("network", "observation"),
    [("shared", "vector"), ("shared", "dict"), ("separate", "vector"), ("separate", "dict"), ("memory", "vector")],
)
def test_a_network_may_change_its_input_while_acting_learning_and_being_evaluated(
    network: str, observation: str
) -> None:
    def run(suffix: str) -> tuple[Look, TrainerState]:
        policy = PolicyConfig(network=f"{NETWORKS}{network}{suffix}")
        evaluation = EvaluationConfig(every=1, episodes=3, num_environments=2)
        return trained(
            config_with(False, options={"observation": observation}, policy=policy, evaluation=evaluation),
            (*ppo_losses(), Asking("score")),
        )

    assert_same(run(""), run("_careless"))


@pytest.mark.parametrize("field", ["advantage", "proximal_log_prob", "reward", "observation"])
def test_a_loss_cannot_ask_for_a_field_that_every_minibatch_has(field: str) -> None:
    with pytest.raises(ExperienceSpecError, match=rf"declares the experience fields \['{field}'\].*without declaring"):
        trained(config_with(False), (*ppo_losses(), Asking(field)))


@pytest.mark.parametrize("learning", [{}, {"shuffle": "segments", "priority_exponent": 1.0}])
def test_a_loss_may_overwrite_its_minibatch(learning: dict[str, Any]) -> None:
    def run(careful: bool) -> tuple[Look, TrainerState]:
        settings = LearningConfig(update_epochs=2, minibatches=2, **learning)
        return trained(config_with(False, learning=settings), (Overwriting(careful), *ppo_losses()))

    assert_same(run(True), run(False))


def test_a_loss_that_changes_what_the_next_one_is_given_of_the_policy_is_named() -> None:
    with pytest.raises(ValueError, match=r"'overwriting_evaluation' changed .* in place.* clone\(\)"):
        trained(config_with(False), (OverwritingEvaluation(), *ppo_losses()))


def test_an_environment_may_train_a_model_of_its_own() -> None:
    config = small_config(
        epochs=2,
        environment="tests.orchestrator.careless:make_curious",
        evaluation=EvaluationConfig(every=1, episodes=2),
    )
    _, final = trained(config)
    assert final.eval_scores is not None
    assert final.eval_scores.avg_simulation_score is not None
