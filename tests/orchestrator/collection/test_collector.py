"""The recorded experience agrees with single environments stepped by hand and a policy computed in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from orchestrator.collection.collector import Collector, CollectReport, derived_seed
from orchestrator.collection.experience_fields import experience_fields
from orchestrator.collection.plan import CollectorPlan
from orchestrator.config.settings import CollectionConfig, PolicyConfig, TrainerConfig
from orchestrator.environments import EnvironmentFailed
from orchestrator.environments.vector import copy_seeds
from orchestrator.policies.policy import Policy
from state.experience import ExperienceSpec, FieldSpec
from tests.environments import Wandering
from tests.small_networks import STATE_SIZE

pytestmark = pytest.mark.slow

COUNT, HORIZON = 3, 25
SERIAL = "tests.environments:make_wandering"
SAME_STEP = "tests.environments:Wandering/SameStep-v0"
NEXT_STEP = "tests.environments:Wandering/NextStep-v0"
KINDS = [(SERIAL, "sync"), (SAME_STEP, "native"), (NEXT_STEP, "native")]
NETWORKS = ["make_shared", "make_separate", "make_recurrent"]

Arrays = dict[str, np.ndarray[Any, Any]]


class Run:
    """A collector with arrays to write to."""

    def __init__(
        self,
        environment: str = SERIAL,
        mode: Any = "auto",
        network: str = "tests.small_networks:make_shared",
        extras: tuple[FieldSpec, ...] = (),
        segments: int = COUNT,
        count: int = COUNT,
        horizon: int = HORIZON,
        seed: int = 11,
        index: int = 0,
        options: Any = {},  # noqa: B006
    ) -> None:
        collection = CollectionConfig(
            num_environments=(index + 1) * count,
            collectors=index + 1,
            horizon=horizon,
            mode=mode,
            environment_options=options,
        )
        config = TrainerConfig(
            environment=environment, seed=seed, collection=collection, policy=PolicyConfig(network=network)
        )
        self.plan = CollectorPlan(config=config, index=index)
        self.collector = Collector(self.plan)
        self.policy: Policy | None = None
        spaces = self.collector.spaces()
        state_size = STATE_SIZE if network.endswith("make_recurrent") else 2 * 64 if network == "lstm" else 0
        groups = {"environment": experience_fields(spaces, state_size, refreshes=config.refreshes), "loss": extras}
        self.spec = ExperienceSpec.merge(segments, horizon, groups)
        self.collector.prepare(self.spec)

    def collect(
        self, stop: Callable[[], bool] = lambda: False, change: Callable[[Policy], None] = lambda policy: None
    ) -> tuple[Arrays, CollectReport]:
        arrays = self.spec.arrays(bytearray(self.spec.nbytes))

        def load(policy: Policy) -> None:
            self.policy = policy
            change(policy)

        report = self.collector.collect(arrays, load, stop)
        return arrays, report


class Reference:
    """The same rollouts, naively: one environment after another, one step at a time, in float64."""

    def __init__(self, plan: CollectorPlan, single: Callable[[], gymnasium.Env[Any, Any]]) -> None:
        count = plan.games
        self.weights: dict[str, Any] = {}
        self.recurrent = False
        self.next_step = plan.config.environment == NEXT_STEP
        seed = derived_seed(plan.seed, 1)
        seeds = copy_seeds(seed, count) if plan.config.collection.mode == "sync" else range(seed, seed + count)
        self.environments = [single() for _ in range(count)]
        self.observations = [
            environment.reset(seed=one)[0] for environment, one in zip(self.environments, seeds, strict=True)
        ]
        self.states = np.zeros((count, STATE_SIZE))
        self.starts = [True] * count
        self.resetting = [False] * count
        self.returns, self.lengths = [0.0] * count, [0] * count

    def forward(self, observation: Any, state: Any, start: bool) -> tuple[Any, float, Any]:
        leaves = [observation[key] for key in sorted(observation)] if isinstance(observation, dict) else [observation]
        features = np.concatenate(
            [np.ravel(leaf) / 255 if leaf.dtype == np.uint8 else np.ravel(leaf).astype(np.float64) for leaf in leaves]
        )
        if self.recurrent:
            state = np.zeros(STATE_SIZE) if start else state
            inputs = np.concatenate([features, state])
            state = features = np.tanh(self.weights["cell.weight"] @ inputs + self.weights["cell.bias"])
        output = self.weights["layer.weight"] @ features + self.weights["layer.bias"]
        return output[:-1], output[-1], state

    def rollout(
        self, policy: Policy, actions: Any, log_prob: Callable[[Any, Any], float]
    ) -> tuple[list[list[dict[str, Any]]], list[Any]]:
        """Rows of steps (values by field) and the episodes that ended, as (step, copy, return, length)."""
        self.recurrent = policy.recurrent
        self.weights = {name: tensor.detach().double().numpy() for name, tensor in policy.network.named_parameters()}
        rows: list[list[dict[str, Any]]] = []
        episodes: list[Any] = []
        for copy, environment in enumerate(self.environments):
            row = []
            for step in range(actions.shape[1]):
                observation, action = self.observations[copy], actions[copy, step]
                start, valid = self.starts[copy], not self.resetting[copy]
                parameters, value, after = self.forward(observation, self.states[copy], start)
                if valid:
                    following, reward, terminated, truncated, _ = environment.step(action)
                else:
                    following, reward, terminated, truncated = environment.reset()[0], 0.0, False, False
                next_value = 0.0
                if valid and not terminated:
                    next_value = self.forward(following, after, False)[1]
                row.append(
                    {
                        "observation": observation,
                        "log_prob": log_prob(parameters, action),
                        "value": value,
                        "next_value": next_value,
                        "reward": reward,
                        "terminated": terminated,
                        "truncated": truncated,
                        "valid": valid,
                        "episode_start": start,
                    }
                )
                self.returns[copy] += float(np.float32(reward))
                self.lengths[copy] += valid
                ended = terminated or truncated
                if ended:
                    episodes.append((step, copy, self.returns[copy], self.lengths[copy]))
                    self.returns[copy], self.lengths[copy] = 0.0, 0
                if ended and not self.next_step:
                    following = environment.reset()[0]
                self.starts[copy] = not valid if self.next_step else ended
                self.resetting[copy] = ended and self.next_step
                self.observations[copy], self.states[copy] = following, after
            rows.append(row)
        return rows, sorted(episodes)


def categorical_log_prob(logits: Any, action: Any) -> float:
    return float(logits[action] - np.log(np.sum(np.exp(logits))))


def multi_categorical_log_prob(logits: Any, action: Any) -> float:
    return categorical_log_prob(logits[:2], action[0]) + categorical_log_prob(logits[2:], action[1])


def gaussian_log_prob(parameters: Any, action: Any) -> float:
    mean, log_std = np.split(parameters, 2)
    deviation = (action.astype(np.float64) - mean) / np.exp(log_std)
    return float(np.sum(-0.5 * deviation**2 - log_std - 0.5 * math.log(2 * math.pi)))


class Agent(gymnasium.Wrapper[Any, Any, Any, Any]):
    """What the agent sees of a Wandering environment, by hand: clipped actions, float32, discrete from 0."""

    def reset(self, **keywords: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**keywords)
        return self._see(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if isinstance(self.env.action_space, gymnasium.spaces.Box):
            action = np.clip(action, self.env.action_space.low, self.env.action_space.high)
            action = action.astype(self.env.action_space.dtype)
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._see(observation), reward, terminated, truncated, info

    def _see(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {
                "camera": observation["camera"],
                "compass": np.array(observation["compass"] - 1),
                "position": observation["position"].astype(np.float32),
            }
        return observation.astype(np.float32)


def assert_agrees(arrays: Arrays, rows: list[list[dict[str, Any]]]) -> None:
    for name in rows[0][0]:
        expected = [[step[name] for step in row] for row in rows]
        if name == "observation" and isinstance(expected[0][0], dict):
            for key in expected[0][0]:
                leaves = np.array([[observation[key] for observation in row] for row in expected])
                np.testing.assert_array_equal(arrays[f"observation/{key}"], leaves)
        else:
            np.testing.assert_allclose(arrays[name], np.array(expected), rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(("environment", "mode"), KINDS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("observation", "action", "log_prob"),
    [
        ("vector", "discrete", categorical_log_prob),
        ("dict", "multidiscrete", multi_categorical_log_prob),
        ("vector", "box", gaussian_log_prob),
    ],
)
def test_rollouts_agree_with_a_naive_one_at_a_time_reference(
    environment: str, mode: Any, network: str, observation: str, action: str, log_prob: Any
) -> None:
    run = Run(
        environment,
        mode,
        f"tests.small_networks:{network}",
        options={"observation": observation, "action": action},
    )
    reference = Reference(run.plan, lambda: Agent(Wandering(observation, action)))
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(3):
        arrays, report = run.collect()
        if network == "make_recurrent":
            before = np.where(np.array(reference.starts)[:, None], 0.0, reference.states)
            np.testing.assert_allclose(arrays["recurrent_state"], before, rtol=1e-5, atol=1e-6)
        assert run.policy is not None
        rows, episodes = reference.rollout(run.policy, arrays["action"], log_prob)
        assert_agrees(arrays, rows)
        assert report.agent_steps == arrays["valid"].sum()
        assert not report.interrupted
        np.testing.assert_allclose(report.rollout_stats["episode_return"], [one[2] for one in episodes], atol=1e-9)
        assert report.rollout_stats["episode_length"] == [one[3] for one in episodes]
        assert report.rollout_stats["steps"] == report.rollout_stats["episode_length"]
        for name in ends:
            ends[name] += int(arrays[name].sum())
    assert min(ends.values()) > 5


@pytest.mark.parametrize(("environment", "mode"), KINDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_an_episode_cut_in_the_last_step_of_the_horizon_is_bootstrapped_from_its_last_observation(
    environment: str, mode: Any, network: str
) -> None:
    # Counting observes how many steps were made, so that the last observation of an episode is its length.
    name = environment.replace("wandering", "counting").replace("Wandering", "Counting")
    options = {"lengths": (6,), "truncate": True}
    run = Run(name, mode, f"tests.small_networks:{network}", horizon=6, options=options)
    arrays, _ = run.collect()
    assert arrays["truncated"][:, -1].all()
    policy = run.policy
    assert policy is not None
    seen = torch.arange(7.0).view(1, 7, 1)
    with torch.no_grad():
        if network == "make_recurrent":
            starts = torch.zeros(1, 7, dtype=torch.bool)
            expected = policy(seen, torch.zeros(1, STATE_SIZE), starts)[1][0, -1]
        else:
            expected = policy(seen[0])[1][-1]
    np.testing.assert_allclose(arrays["next_value"][:, -1], float(expected), rtol=1e-5)


@pytest.mark.parametrize(
    ("environment", "network", "options"),
    [
        ("CartPole-v1", "mlp", {}),
        ("CartPole-v1", "lstm", {}),
        ("orchestrator.environments.memory:make", "lstm", {}),
        (SERIAL, "cnn", {"observation": "image", "action": "multidiscrete"}),
        (SERIAL, "mlp", {"observation": "dict", "action": "box"}),
        (SERIAL, "lstm", {"observation": "discrete", "action": "grid"}),
        (NEXT_STEP, "lstm", {"observation": "dict", "action": "discrete"}),
    ],
)
def test_the_learner_finds_the_recorded_probabilities_and_values_again(
    environment: str, network: str, options: dict[str, Any]
) -> None:
    run = Run(environment, "auto", network, options=options)
    for _ in range(2):
        arrays, _ = run.collect()
        policy = run.policy
        assert policy is not None
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        observation: Any = tensors.get("observation")
        if observation is None:
            observation = {
                name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith("observation/")
            }
        state = (tensors["recurrent_state"], tensors["episode_start"]) if policy.recurrent else ()
        with torch.no_grad():
            found = policy.evaluate(observation, tensors["action"], *state)
        np.testing.assert_allclose(found.log_prob, arrays["log_prob"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.value, arrays["value"], rtol=1e-4, atol=1e-5)


def test_only_the_rows_of_the_plan_are_written() -> None:
    run = Run(index=1, segments=7)
    arrays, _ = run.collect()
    for array in arrays.values():
        assert not array[:3].any()
        assert not array[6:].any()
    assert arrays["episode_start"][3:6, 0].all()
    assert arrays["observation"][3:6].all()


def test_the_policy_acts_with_the_parameters_that_were_loaded_for_the_rollout() -> None:
    run = Run(network="tests.small_networks:make_separate", options={"action": "discrete"})

    def constant(value: float, action: int) -> Callable[[Policy], None]:
        def change(policy: Policy) -> None:
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.zero_()
                bias = next(tensor for name, tensor in policy.named_parameters() if name.endswith("bias"))
                bias[action] = 100.0
                bias[-1] = value

        return change

    for value, action in ((1.0, 2), (-3.0, 0)):
        arrays, _ = run.collect(change=constant(value, action))
        assert (arrays["action"] == action).all()
        np.testing.assert_array_equal(arrays["value"], value)
        np.testing.assert_array_equal(arrays["next_value"], np.where(arrays["terminated"], 0.0, value))
        np.testing.assert_array_equal(arrays["log_prob"], 0.0)


@pytest.mark.parametrize(("name", "mode"), [("Counting/NextStep-v0", "native"), ("make_counting", "sync")])
def test_episodes_that_span_rollouts_are_counted_whole(name: str, mode: Any) -> None:
    run = Run(f"tests.environments:{name}", mode, count=1, segments=1, horizon=2, options={"lengths": (3, 5, 1)})
    stats: dict[str, list[float]] = {}
    steps = 0
    for _ in range(14):
        _, report = run.collect()
        steps += report.agent_steps
        for key, values in report.rollout_stats.items():
            stats.setdefault(key, []).extend(values)
    assert stats["episode_length"][:7] == [3, 5, 1, 3, 5, 1, 3]
    assert stats["episode_return"] == [length * (length + 1) / 2 for length in stats["episode_length"]]
    assert stats["score"] == [10 * length for length in stats["episode_length"]]
    assert stats["nested/bonus"] == [0.5] * len(stats["score"])
    assert set(stats) == {"episode_length", "episode_return", "score", "nested/bonus"}
    assert 28 - len(stats["score"]) <= steps <= 28


def test_the_same_seed_gives_the_same_experience_and_another_seed_another() -> None:
    first, again, other = Run(), Run(), Run(seed=12)
    for _ in range(2):
        arrays, same, different = first.collect()[0], again.collect()[0], other.collect()[0]
        for name in arrays:
            np.testing.assert_array_equal(arrays[name], same[name])
    assert not np.array_equal(arrays["action"], different["action"])
    assert not np.array_equal(arrays["observation"], different["observation"])


def test_a_network_may_return_the_same_memory_at_every_call() -> None:
    usual, reusing = Run(network="tests.small_networks:make_shared"), Run(network="tests.small_networks:make_reusing")
    arrays, same = usual.collect()[0], reusing.collect()[0]
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], same[name])


def test_stop_ends_the_rollout_at_the_next_step_and_the_next_one_goes_on() -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 7

    name = "tests.environments:make_counting"
    run = Run(name, options={"lengths": (5, 30)})
    _, report = run.collect(stop)
    assert report.interrupted
    assert report.agent_steps == 7 * COUNT
    assert report.rollout_stats["episode_length"] == [5.0] * COUNT
    arrays, report = run.collect()
    assert not report.interrupted
    # Two steps of the second episode were made before.
    np.testing.assert_array_equal(arrays["observation"][:, 0, 0], 2.0)
    assert arrays["episode_start"].sum() == 0
    report = run.collect()[1]
    assert report.rollout_stats["episode_length"] == [30.0] * COUNT + [5.0] * COUNT


@pytest.mark.parametrize(("environment", "mode"), KINDS)
def test_fields_that_losses_declare_are_filled_from_the_infos_of_that_name(environment: str, mode: Any) -> None:
    extras = (FieldSpec("steps", (), "int64"), FieldSpec("nested/pair", (2,), "float32"))
    run = Run(environment, mode, extras=extras)
    length = np.zeros(COUNT, np.int64)
    for _ in range(2):
        arrays, _ = run.collect()
        np.testing.assert_allclose(arrays["nested/pair"][..., 0], arrays["reward"], rtol=1e-6)
        np.testing.assert_array_equal(arrays["nested/pair"][..., 1], arrays["valid"])
        for step in range(HORIZON):
            length = np.where(arrays["episode_start"][:, step], 0, length) + 1
            np.testing.assert_array_equal(arrays["steps"][:, step], np.where(arrays["valid"][:, step], length, 0))


def test_a_declared_field_that_the_environment_does_not_give_is_named() -> None:
    run = Run("CartPole-v1", extras=(FieldSpec("teacher_logits", (2,), "float32"),))
    with pytest.raises(EnvironmentFailed, match=r"'CartPole-v1'.*field 'teacher_logits' of shape \[2\]"):
        run.collect()


def test_a_declared_field_per_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="'context' is per segment"):
        Run(extras=(FieldSpec("context", (2,), "float32", per="segment"),))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("step", "the simulator is gone"),
        ("nan reward", "gave nan in the reward of copy 0, step 0"),
        ("infinite observation", "gave inf in the observation of copy 0, step 1"),
    ],
)
def test_an_environment_that_fails_is_named(fault: str, message: str) -> None:
    run = Run("tests.environments:make_faulty", options={"fault": fault})
    with pytest.raises(EnvironmentFailed, match=f"'tests.environments:make_faulty'.*{message}"):
        run.collect()


@pytest.mark.parametrize("horizon", [3, 4, 5])
@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ("tests.environments:make_faulty", "sync"),
        ("tests.environments:Faulty/SameStep-v0", "native"),
        ("tests.environments:Faulty/NextStep-v0", "native"),
    ],
)
def test_a_final_observation_that_is_not_finite_is_found_where_it_is_valued(
    environment: str, mode: str, horizon: int
) -> None:
    run = Run(environment, mode, horizon=horizon, options={"fault": "nan final observation"})
    if horizon == 3:  # the episode ends after it
        run.collect()
        return
    with pytest.raises(EnvironmentFailed, match=f"{environment}.*gave nan in the observation of copy 0, step [34]"):
        run.collect()


def test_collecting_before_preparing_is_refused() -> None:
    collector = Collector(CollectorPlan(config=TrainerConfig()))
    with pytest.raises(RuntimeError, match="call prepare"):
        collector.collect({}, lambda policy: None, lambda: False)


def test_an_experience_that_does_not_fit_is_refused() -> None:
    run = Run()
    for segments, horizon in ((COUNT, HORIZON + 1), (COUNT - 1, HORIZON)):
        with pytest.raises(
            ValueError, match=rf"is {segments} segments by {horizon} steps.*segments 0 to 2 by 25 steps"
        ):
            run.collector.prepare(dataclasses.replace(run.spec, segments=segments, horizon=horizon))
    fields = [field for field in run.spec.fields if field.name != "value"]
    with pytest.raises(ValueError, match=r"lacks the fields \['value'\]"):
        run.collector.prepare(dataclasses.replace(run.spec, fields=tuple(fields)))


@pytest.mark.parametrize("network", ["tests.small_networks:make_separate", "lstm"])
@pytest.mark.parametrize(("environment", "mode"), [("CartPole-v1", "native"), ("Acrobot-v1", "sync"), *KINDS])
def test_a_collector_with_loaded_state_goes_on_bitwise_the_same(environment: str, mode: Any, network: str) -> None:
    run = Run(environment, mode, network)
    for _ in range(2):
        run.collect()
    state = run.collector.state()
    expected = [run.collect() for _ in range(2)]
    other = Run(environment, mode, network)
    other.collect()
    assert other.collector.load_state(state) is None
    for arrays, report in expected:
        same, same_report = other.collect()
        for name in arrays:
            np.testing.assert_array_equal(arrays[name], same[name])
        assert report.rollout_stats == same_report.rollout_stats


@pytest.mark.parametrize(("environment", "mode"), [("CartPole-v1", "native"), ("Acrobot-v1", "sync")])
def test_episodes_begun_anew_are_none_that_the_run_has_had(environment: str, mode: Any) -> None:
    first, *later = (Run(environment, mode) for _ in range(4))
    beginning, _ = first.collect()
    for run, rollouts in zip(later, (5, 5, 6), strict=True):
        run.collector.begin_new_episodes(rollouts)
    anew, again, others = (run.collect()[0] for run in later)
    for name in ("observation", "action"):
        np.testing.assert_array_equal(anew[name], again[name])
        assert not np.array_equal(anew[name], beginning[name])
        assert not np.array_equal(anew[name], others[name])
    assert anew["episode_start"][:, 0].all()


def test_new_episodes_begin_where_the_environments_cannot_tell_their_state() -> None:
    def hide(run: Run) -> None:
        for environment in run.collector._environment._environments:  # type: ignore[attr-defined]
            environment.hidden = object()

    run, other = Run(network="lstm"), Run(network="lstm")
    hide(run)
    first = run.collect()[0]
    state = run.collector.state()
    assert state["environment"] is None
    assert ".hidden" in (other.collector.load_state(state) or "")
    arrays, _ = other.collect()
    assert arrays["episode_start"][:, 0].all()
    assert not arrays["recurrent_state"].any()
    # Not the episodes of the run's beginning once more.
    assert not np.array_equal(arrays["observation"][:, 0], first["observation"][:, 0])
