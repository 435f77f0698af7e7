"""Names and values of the records of a run, against what numpy makes of the experience itself."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator import EvaluationConfig, Hook, LearningConfig, MetricsConfig, PolicyConfig, Trainer
from orchestrator.hooks.included.metrics_record import metrics, weight_norm
from state.stopwatch import Stopwatch
from state.trainer_state import TrainerState
from tests.orchestrator.training import small_config
from tests.paths import PROJECT

pytestmark = pytest.mark.anyio
DOCUMENT = (PROJECT / "docs" / "metrics.md").read_text()


class Witness(Hook):
    """Keeps copies of what each epoch was made of."""

    overflow = "block"
    max_lag = 100

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, Any]] = {}
        self.returns: list[float] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        assert state.policy is not None
        assert state.rollout_stats is not None
        self.returns += state.rollout_stats.get("episode_return", ())
        parameters = dict(state.policy.load().named_parameters())
        self.epochs[state.epoch] = {
            "experience": {name: array.copy() for name, array in state.experience.items()},
            "behavior_version": state.experience.policy_version,
            "version": state.policy.version,
            "norm": math.sqrt(sum(float(one.detach().double().square().sum()) for one in parameters.values())),
            "episode_returns": list(state.rollout_stats.get("episode_return", ())),
            "recent": self.returns[-100:],
            "losses": dict(state.loss_stats or {}),
        }


def advantages(experience: dict[str, NDArray[Any]], discount: float, gae_lambda: float) -> NDArray[np.float64]:
    """Generalized advantage estimation, one step at a time in float64."""
    reward, value, next_value = (experience[name].astype(np.float64) for name in ("reward", "value", "next_value"))
    valid = experience["valid"]
    ends = experience["terminated"] | experience["truncated"]
    result = np.zeros_like(reward)
    for segment in range(reward.shape[0]):
        following = 0.0
        for step in reversed(range(reward.shape[1])):
            if not valid[segment, step]:
                continue
            bootstrap = 0.0 if experience["terminated"][segment, step] else next_value[segment, step]
            delta = reward[segment, step] + discount * bootstrap - value[segment, step]
            following = delta + (0.0 if ends[segment, step] else discount * gae_lambda * following)
            result[segment, step] = following
    return result


async def test_the_records_of_a_run_are_what_its_experience_says(tmp_path: Path) -> None:
    witness = Witness()
    config = small_config(
        epochs=6,
        run_dir=tmp_path / "run",
        learning=LearningConfig(update_epochs=2, minibatches=2, refresh=False),  # values as recorded
        policy=PolicyConfig(hidden_sizes=(8,), normalize_rewards=False),
        evaluation=EvaluationConfig(every=2, episodes=2, num_environments=2),
        metrics=MetricsConfig(weight_norm_every=2),
    )
    await Trainer(config, hooks=[witness]).run()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    steps = 0
    for record in records:
        seen = witness.epochs[record["epoch"]]
        experience, losses = seen["experience"], seen["losses"]
        valid = experience["valid"]
        steps += int(valid.sum())
        assert record["agent_step"] == steps
        assert record["sps"] == record["overview/sps"] == pytest.approx(int(valid.sum()) / record["time/epoch"])
        if seen["episode_returns"]:
            assert record["rollout/episode_return"] == pytest.approx(np.mean(seen["episode_returns"]))
        assert record["overview/reward"] == record["rollout/recent_return"] == pytest.approx(np.mean(seen["recent"]))

        advantage = advantages(experience, config.learning.discount, config.learning.gae_lambda)[valid]
        value = experience["value"][valid].astype(np.float64)
        assert record["experience/value"] == pytest.approx(value.mean(), rel=1e-4, abs=1e-5)
        assert record["experience/reward"] == pytest.approx(experience["reward"][valid].mean())
        assert record["experience/advantage"] == pytest.approx(advantage.mean(), rel=1e-3, abs=1e-4)
        assert record["experience/advantage_std"] == pytest.approx(advantage.std(), rel=1e-3)
        assert record["experience/return"] == pytest.approx((advantage + value).mean(), rel=1e-3, abs=1e-4)
        explained = 1 - advantage.var() / (advantage + value).var()
        assert record["experience/explained_variance"] == pytest.approx(explained, rel=1e-2, abs=1e-3)
        assert record["experience/staleness"] == seen["version"] - 1 - seen["behavior_version"]

        assert record["policy/entropy"] == record["loss/ppo_actor/entropy"] == losses["ppo_actor/entropy"]
        assert record["policy/approx_kl"] == losses["ppo_actor/approx_kl"]
        assert record["policy/clip_fraction"] == losses["ppo_actor/clip_fraction"]
        assert record["policy/gradient_norm"] == losses["gradient_norm"]
        computed = record["epoch"] if record["epoch"] % 2 == 0 else max(1, record["epoch"] - 1)
        assert record["policy/weight_norm"] == pytest.approx(witness.epochs[computed]["norm"], rel=1e-5)
        assert record["time/learn_fraction"] == pytest.approx(record["time/learn"] / record["time/epoch"])
    assert [record["experience/staleness"] for record in records] == [0] + [1] * (len(records) - 1)
    for name in ("collect", "learn"):
        assert sum(record[f"time/{name}"] for record in records) <= records[-1][f"time/{name}_total"] + 1e-9
    assert undocumented(set().union(*records)) == set()


def documented_names() -> list[str]:
    """The first column of the tables, which may name several."""
    rows = re.findall(r"^\| (`.*?`) \|", DOCUMENT, flags=re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def undocumented(names: set[str]) -> set[str]:
    patterns = [re.sub(r"<\w+>", ".+", re.escape(name)) for name in documented_names()]
    return {name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns)}


def test_the_keys_that_are_always_there() -> None:
    always = {"epoch", "agent_step", "rollout/episode_return", "rollout/episode_length", "time/seconds"}
    record = metrics(TrainerState())
    assert always <= record.keys()
    assert record["rollout/episode_return"] is None
    assert record["overview/reward"] is None


def test_numbers_that_are_not_finite_are_null() -> None:
    record = metrics(TrainerState(loss_stats={"x": math.nan, "y": math.inf, "z": 1.0}), extra={"own": -math.inf})
    assert [record[name] for name in ("loss/x", "loss/y", "loss/z", "own")] == [None, None, 1.0, None]
    json.dumps(record, allow_nan=False)


def test_the_waiting_of_the_learner_is_what_it_does_not_learn() -> None:
    now = 0.0
    watch = Stopwatch(lambda: now)
    for learned, until in ((1.0, 4.0), (2.0, 6.0)):
        watch.add("learn", learned)
        watch.add("collect", 0.5)
        now = until
        reading = watch.lap()
    record = metrics(TrainerState(timer=reading))
    expected = {
        "epoch": 2.0,
        "seconds": 6.0,
        "learn": 2.0,
        "learn_total": 3.0,
        "learn_fraction": 1.0,
        "collect": 0.5,
        "collect_total": 1.0,
        "collect_fraction": 0.25,
        "wait": 0.0,
        "wait_total": 3.0,
        "wait_fraction": 0.0,
    }
    assert {name: record[f"time/{name}"] for name in expected} == expected


async def test_the_weight_norm_is_that_of_the_parameters_alone() -> None:

    final = await Trainer(
        small_config(epochs=3, policy=PolicyConfig(hidden_sizes=(7, 5), normalize_observations=True))
    ).run()
    assert final.policy is not None
    squares = sum(float(one.detach().double().square().sum()) for one in final.policy.load().parameters())
    assert weight_norm(final.policy) == pytest.approx(math.sqrt(squares), rel=1e-6)
