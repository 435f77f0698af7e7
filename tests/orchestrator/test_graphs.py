"""Minibatches that are recorded and replayed: the bits of a run without, or a warning that says why not. Here the
operations are recorded and replayed on the CPU (recorded_graph.py)."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import pytest
import torch

from losses import GradientReporter, LearnerCallback, Loss, UpdateEpochsTuner, ppo_losses
from orchestrator import Hook, LearningConfig, LossesConfig, PolicyConfig, Trainer, TrainerConfig
from orchestrator.config.error import ConfigurationError
from orchestrator.config.settings import TypePolicy
from orchestrator.policies import capture
from orchestrator.policies.capture import GraphsError
from orchestrator.policies.lstm import LSTM
from tests.orchestrator.recorded_graph import RecordedOperations, record_on_cpu
from tests.orchestrator.training import small_config
from tests.paths import PROJECT
from tests.small_networks import Shared, flat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from losses import Minibatch, PolicyEvaluation
    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow

GRAPHS = LearningConfig(update_epochs=2, minibatches=4, threads=1, learning_rate=1e-3, graphs=True)


class Endless(gymnasium.Env[Any, Any]):
    """Episodes without an end, so that all steps are valid. What is observed depends on the action before."""

    def __init__(self, shape: tuple[int, ...] = (3,), images: bool = False) -> None:
        dtype = np.uint8 if images else np.float32
        self.observation_space = gymnasium.spaces.Box(0, 255 if images else 1, shape, dtype)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**options)
        return self._observed(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observed(int(action)), float(action == 1) + self.np_random.random(), False, False, {}

    def _observed(self, action: int) -> Any:
        space = self.observation_space
        seen = self.np_random.random(space.shape) * (1 + action) / 3 * space.high.max()  # type: ignore[attr-defined]
        return seen.astype(space.dtype)


def images() -> Endless:
    return Endless((36, 36, 1), images=True)


class Trained(Hook):
    """What each epoch's losses were, and the weights at the end."""

    def __init__(self) -> None:
        self.stats: list[dict[str, float]] = []
        self.replayed: list[float] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        assert state.loss_stats is not None
        stats = dict(state.loss_stats)
        self.replayed.append(stats.pop("replayed_minibatches", -1.0))
        self.stats.append(stats)


def trained(config: TrainerConfig, **options: Any) -> tuple[dict[str, np.ndarray[Any, Any]], Trained]:
    seen = Trained()
    collection = dataclasses.replace(config.collection, graphs=False)
    policy = anyio.run(Trainer(dataclasses.replace(config, collection=collection), hooks=[seen], **options).run).policy
    assert policy is not None
    return {name: np.array(tensor) for name, tensor in policy.tensors.items()}, seen


def eager(config: TrainerConfig) -> TrainerConfig:
    return dataclasses.replace(config, learning=dataclasses.replace(config.learning, graphs=False))


def endless(learning: LearningConfig = GRAPHS, **settings: Any) -> TrainerConfig:
    settings = {"environment": f"{__name__}:Endless", "epochs": 5, "learning": learning} | settings
    return small_config(**settings)


def with_learning(**settings: Any) -> dict[str, Any]:
    return {"learning": dataclasses.replace(GRAPHS, **settings)}


VARIANTS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "constant rate": with_learning(learning_rate_schedule="linear"),
    "images": {"environment": f"{__name__}:images", "epochs": 3},
    "lstm": {"policy": PolicyConfig(network="lstm", hidden_sizes=(8,), lstm_size=4)},
    "target kl": {"losses": LossesConfig(target_kl=2e-4)},
    "value clipping": {"losses": LossesConfig(value_clip=0.1)},
    "v-trace": {"losses": LossesConfig(names=("vtrace_actor", "vtrace_critic"))},
    "prioritised": with_learning(priority_exponent=0.8, minibatches=2),
    "accumulated": with_learning(accumulate_minibatches=2, update_epochs=3),
    "staleness 1": {"staleness": 1, "losses": LossesConfig(staleness_clip=2.0)},
    "staleness 0.5": {"staleness": 0.5, "epochs": 10},
    "one loss": {"losses": LossesConfig(names=("ppo_actor",))},
    "staleness 1, not refreshed": {"staleness": 1} | with_learning(refresh=False),
    "bfloat16": with_learning(precision="bfloat16"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_replayed_minibatches_learn_what_others_learn(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_cpu(monkeypatch)
    if variant == "lstm":  # on a CPU it looks for resets, to be faster where there are none
        monkeypatch.setattr(LSTM, "_recur", _recur_as_on_a_device(LSTM._recur))
    config = endless(**VARIANTS[variant])
    weights, seen = trained(config)
    expected, without = trained(eager(config))
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    assert seen.stats == without.stats
    assert seen.replayed[-1] > 0
    assert without.replayed[-1] == -1.0


def _recur_as_on_a_device(recur: Callable[..., Any]) -> Callable[..., Any]:
    def recur_elsewhere(self: Any, encoded: Any, state: Any, episode_start: Any) -> Any:
        if episode_start.shape[1] == 1:
            return recur(self, encoded, state, episode_start)

        class Elsewhere:
            device = torch.device("meta")

            def __getattr__(self, name: str) -> Any:
                return getattr(encoded, name)

        return recur(self, Elsewhere(), state, episode_start)

    return recur_elsewhere


class NotRecordable(RecordedOperations):
    def record(self, function: Callable[[], object]) -> Callable[[], None]:
        raise RuntimeError("no recording today")


class Wrong(RecordedOperations):
    """Replays something else."""

    def record(self, function: Callable[[], object]) -> Callable[[], None]:
        replay = super().record(function)

        def wrong() -> None:
            replay()
            replay()

        return wrong


def test_minibatches_of_epochs_with_steps_that_are_not_valid_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are filled up to one size: the numbers of a run without graphs, up to rounding."""
    record_on_cpu(monkeypatch)
    config = small_config(epochs=6, learning=GRAPHS)
    weights, seen = trained(config)
    assert seen.replayed[-1] == 8.0
    without, plain = trained(eager(config))
    monkeypatch.setitem(capture.CAPTURES, "cpu", NotRecordable)
    never_replayed, never = trained(config)
    assert never.replayed[-1] == 0.0
    for name, array in weights.items():
        np.testing.assert_array_equal(array, never_replayed[name], err_msg=name)
        np.testing.assert_allclose(array, without[name], atol=1e-4, err_msg=name)
    assert seen.stats == never.stats
    assert plain.stats[-1] == pytest.approx(seen.stats[-1], rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("wrong", [NotRecordable, Wrong])
def test_what_cannot_be_repeated_is_said_and_learned_without(
    wrong: type[RecordedOperations], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(capture.CAPTURES, "cpu", wrong)
    weights, seen = trained(endless())
    expected, without = trained(eager(endless()))
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    assert seen.stats == without.stats
    assert set(seen.replayed) == {0.0}
    said = [record.getMessage() for record in caplog.records if "without graphs" in record.getMessage()]
    assert len(said) == 1
    assert ("no recording today" if wrong is NotRecordable else "differs") in said[0]


class Undeclared(Loss):
    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        return 1e-3 * evaluation.value.square().mean()


class Reading(Undeclared):
    capturable = True

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        size = evaluation.value.square().mean()
        return size * 1e-3 if size.item() < 1e9 else size * 0.0


class Picking(Undeclared):
    capturable = True

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        return evaluation.value[evaluation.value > 0.0].sum() * 1e-3


class Inheriting(Reading):
    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        return super().compute(minibatch, evaluation)


class Watching(LearnerCallback):
    def observe(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> None:
        self.track("size", minibatch["reward"].mean())


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (Undeclared, "the loss 'undeclared' does not say"),
        (Inheriting, "the loss 'inheriting' does not say"),
        (Picking, "aten::index has a boolean mask, of which the host counts what it picks: use torch.where (raised"),
        (Reading, "reads from the device, which a graph can't (raised by the loss 'reading' in epoch 1"),
        (Watching, "observe of 'watching'"),
        (UpdateEpochsTuner, "observe of 'update_epochs_tuner'"),
    ],
)
def test_losses_and_callbacks_that_a_device_cannot_repeat_are_named(
    member: type[LearnerCallback], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record_on_cpu(monkeypatch)
    weights, seen = trained(endless(), losses=[*ppo_losses(), member()])
    expected, without = trained(eager(endless()), losses=[*ppo_losses(), member()])
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    assert seen.stats == without.stats
    assert reason in caplog.text
    assert max(seen.replayed) <= 0.0


class Declared(Shared):
    capturable = True


@pytest.mark.parametrize("network", [Shared, Declared])
def test_a_network_of_ones_own_says_whether_it_can_be_repeated(
    network: type[Shared], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record_on_cpu(monkeypatch)
    config = endless(policy=PolicyConfig(network=f"{network.__module__}:{network.__name__}"))
    weights, seen = trained(config)
    expected, _ = trained(eager(config))
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    assert ("the network Shared does not say" in caplog.text) == (network is Shared)
    assert (seen.replayed[-1] > 0) == (network is Declared)


class Sometimes(Loss):
    """Not finite for one of the minibatches, decided on the device."""

    capturable = True

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        mean = minibatch["observation"].mean()
        return evaluation.value.mean() * torch.where(mean > 0.35, torch.nan, 1e-3)


def test_minibatches_that_are_not_finite_are_skipped_by_replays_too(monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_cpu(monkeypatch)
    config = endless(**with_learning(nonfinite="skip"), epochs=8)
    weights, seen = trained(config, losses=[*ppo_losses(), Sometimes()])
    expected, without = trained(eager(config), losses=[*ppo_losses(), Sometimes()])
    assert any(0.0 < stats.get("skipped_minibatches", 0.0) < 8.0 for stats in seen.stats[1:])
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    np.testing.assert_equal(seen.stats, without.stats)


class Steering(LearnerCallback):
    """Changes what a recording has as it was: coefficients, what is frozen, and what is called for gradients."""

    def __init__(self, actor: Any, every: int = 2) -> None:
        super().__init__()
        self.actor, self.every = actor, every

    def on_rollout_end(self, state: TrainerState) -> None:
        self.actor.entropy_coefficient = 0.01 / (1 + state.epoch // self.every)
        parameters = list(self.context.policy.parameters())
        parameters[0].requires_grad_(state.epoch != 4)

    def on_mb_end(self, state: TrainerState) -> None:
        self.track("minibatch", float(state.mb_idx))


def steered(every: int = 2) -> list[LearnerCallback]:
    losses = ppo_losses()
    return [*losses, Steering(losses[0], every), GradientReporter(every=3)]


def test_what_is_changed_between_minibatches_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_cpu(monkeypatch)
    weights, seen = trained(endless(epochs=9), losses=steered())
    expected, without = trained(eager(endless(epochs=9)), losses=steered())
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    assert seen.stats == without.stats
    assert seen.replayed[1] > 0
    assert seen.replayed[3] == 0.0  # the gradients are reported
    assert seen.replayed[7] > 0


def test_coefficients_that_change_in_every_epoch_end_the_recordings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record_on_cpu(monkeypatch)
    _, seen = trained(endless(epochs=22), losses=steered(every=1))
    assert seen.replayed[-1] == 0.0
    assert "change again and again" in caplog.text


class Scaled(Loss):
    capturable = True

    def __init__(self) -> None:
        super().__init__()
        self.scales: Any = (np.float32(1e-3),)

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        return float(self.scales[0]) * minibatch.mean(evaluation.value)

    def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch == 3:
            self.scales = (np.float32(1e-2),)


def test_a_coefficient_counts_wherever_a_loss_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_cpu(monkeypatch)
    weights, seen = trained(endless(), losses=[*ppo_losses(), Scaled()])
    expected, without = trained(eager(endless()), losses=[*ppo_losses(), Scaled()])
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    assert seen.stats == without.stats
    assert seen.replayed[-1] > 0


class Counting(Scaled):
    def on_mb_end(self, state: TrainerState) -> None:
        self.scales = (1e-3, state.mb_idx)


def test_what_changes_with_every_minibatch_is_said_to_keep_it_from_being_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record_on_cpu(monkeypatch)
    _, seen = trained(endless(), losses=[*ppo_losses(), Counting()])
    assert set(seen.replayed) == {0.0}
    assert "change again and again" in caplog.text


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_cpu(monkeypatch)
    config = small_config(epochs=6, learning=GRAPHS, run_dir=tmp_path / "whole")
    whole, _ = trained(config)
    trained(dataclasses.replace(config, total_agent_steps=300, run_dir=tmp_path / "half"))
    resumed, seen = trained(dataclasses.replace(config, run_dir=tmp_path / "half"), resume=tmp_path / "half")
    assert seen.replayed[-1] > 0
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """In processes, as a run is that is not for debugging."""
    words = [sys.executable, "-m", "orchestrator", "train", "--environment", "CartPole-v1", "--learning.graphs", "True"]
    words += ["--policy.network", "tests.orchestrator.recorded_graph:recorded_mlp", "--checkpoints.every", "2"]
    words += ["--collection.num-environments", "4", "--total-agent-steps", "4000", "--staleness", "1"]
    variables = os.environ | {"PYTHONPATH": str(PROJECT)}

    def started(*more: str) -> subprocess.Popen[str]:
        command = [*words, *more]
        return subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def weights(folder: Path) -> bytes:
        return (max((folder / "checkpoints").glob("[0-9]*")) / "policy.safetensors").read_bytes()

    undisturbed = started("--run-dir", str(tmp_path / "undisturbed"))
    killed = started("--run-dir", str(tmp_path / "killed"))
    while killed.poll() is None and not list((tmp_path / "killed" / "checkpoints").glob("[0-9]*")):
        time.sleep(0.01)
    assert killed.poll() is None, killed.communicate()[1]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    words[4:] = ["--resume", str(tmp_path / "killed")]
    for run in (undisturbed, started()):
        errors = run.communicate()[1]
        assert run.returncode == 0, errors
        assert "without graphs" not in errors
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")
    records = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss/replayed_minibatches"] > 0


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_a_device_without_graphs_is_named_at_the_start(backend: Any) -> None:
    with pytest.raises(GraphsError, match=r"learning\.graphs is true, but .* 'cpu'.* set device to 'cuda'"):
        trained(small_config(learning=GRAPHS, backend=backend))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (with_learning(compile=True), "learning.compile = True"),
        (with_learning(shards=2), "learning.shards = 2"),
        ({"cells": 2, "backend": "process"}, "cells = 2"),
        ({"policy": PolicyConfig(by_type=(TypePolicy(type="seeker"),))}, "policy.by_type = 1 policies"),
    ],
)
def test_settings_that_do_not_go_with_graphs_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Trainer(endless(**settings))
    assert "learning.graphs = True" in str(caught.value)
    assert f"false with {named}" in str(caught.value)


def test_auto_records_where_that_works(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    record_on_cpu(monkeypatch)
    _, seen = trained(endless(**with_learning(graphs="auto")))
    assert seen.replayed[-1] == 8.0
    _, seen = trained(endless(**with_learning(graphs="auto", shards=2)))
    assert set(seen.replayed) == {-1.0}
    assert "without graphs" not in caplog.text


class Dropping(Shared):
    capturable = True

    def forward(self, observation: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output = torch.nn.functional.dropout(self.layer(flat(observation, 1)), 0.1, self.training)
        return output[:, :-1], output[:, -1]


class Irreproducible(RecordedOperations):
    """Draws other numbers each time, as sums may be rounded otherwise each time."""

    def set_generator_state(self, state: torch.Tensor) -> None: ...


@pytest.mark.parametrize("draws_again", [False, True])
def test_a_device_that_does_not_give_the_same_bits_twice_may_repeat_minibatches_too(
    draws_again: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = endless(policy=PolicyConfig(network=f"{__name__}:Dropping"))
    monkeypatch.setitem(capture.CAPTURES, "cpu", RecordedOperations if draws_again else Irreproducible)
    torch.manual_seed(1)
    weights, seen = trained(config)
    assert seen.replayed[-1] == 8.0
    assert "without graphs" not in caplog.text
    torch.manual_seed(1)
    expected, _ = trained(eager(config))
    # Where it does, replays draw what would be drawn without them.
    assert all(np.array_equal(weights[name], expected[name]) for name in expected) == draws_again
