"""Several learners that share each batch: the same bits for any number of them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import numpy as np
import psutil
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import nn

from losses import GradientReporter, LearnerCallback, Loss, UpdateEpochsTuner
from orchestrator import (
    CheckpointsConfig,
    ConfigurationError,
    LearningConfig,
    LossesConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
    TypePolicy,
)
from orchestrator.learning.agreement import CellsDiffer
from orchestrator.learning.optimization import NonFiniteLossError
from tests.orchestrator.training import losses_with, small_config, worker_processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from losses import Minibatch, PolicyEvaluation
    from state import TrainerState

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


EPOCHS = 6


class OneStepEpisodes(VectorEnv[Any, Any, Any]):
    """Every other step of a copy only resets it: the first half of the copies in even steps, the others in odd ones."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = spaces.Box(-1.0, 1.0, (num_envs, 2), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.action_space = spaces.MultiDiscrete([2] * num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._step = np.arange(self.num_envs) >= self.num_envs // 2
        return self._seen(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        ended = ~self._step
        self._step = ended
        never = np.zeros(self.num_envs, bool)
        return self._seen(), np.asarray(actions, np.float64), ended, never, {}

    def _seen(self) -> Any:
        return np.full((self.num_envs, 2), 0.5, np.float32)


def config_for(cells: int, shards: int = 4, *, epochs: int = EPOCHS, **settings: Any) -> TrainerConfig:
    config = small_config(epochs=epochs, num_environments=8, backend=settings.pop("backend", "process"), **settings)
    learning = dataclasses.replace(config.learning, shards=shards)
    return dataclasses.replace(config, cells=cells, learning=learning)


async def trained(config: TrainerConfig, losses: Sequence[LearnerCallback] | None = None, **options: Any) -> Any:
    with anyio.fail_after(200):
        return await Trainer(config, losses=losses, **options).run()


def bits(state: TrainerState) -> bytes:
    assert state.policy is not None
    return b"".join(np.array(tensor).tobytes() for tensor in state.policy.tensors.values())


def assert_same(*states: TrainerState) -> None:
    first = states[0]
    assert first.loss_stats is not None
    for other in states[1:]:
        assert other.agent_step == first.agent_step
        assert other.loss_stats is not None
        assert dict(other.loss_stats) == pytest.approx(dict(first.loss_stats), rel=0, abs=0, nan_ok=True)
        assert bits(other) == bits(first)


# The same bits.


KINDS: dict[str, dict[str, Any]] = {
    "in turn": {"staleness": 0},
    "overlapping": {"staleness": 1},
    "half an epoch": {"staleness": 0.5},
    "lstm": {"policy": PolicyConfig(network="lstm", lstm_size=4)},
    "normalized": {"policy": PolicyConfig(hidden_sizes=(8,), normalize_observations=True, normalize_rewards=True)},
    "target kl": {"losses": LossesConfig(target_kl=0.0001)},
    "vtrace": {"losses": LossesConfig(names=("vtrace_actor", "vtrace_critic"))},
    "priority": {"learning": LearningConfig(minibatches=2, update_epochs=2, priority_exponent=0.8)},
    "accumulated": {"learning": LearningConfig(minibatches=2, update_epochs=2, accumulate_minibatches=2)},
    "kl": {"learning": LearningConfig(minibatches=2, update_epochs=2, learning_rate_kl=1e-05)},
    "types": {
        "environment": "tests.games:HideAndSeek",
        "policy": PolicyConfig(by_type=(TypePolicy(type="seeker"), TypePolicy(type="hider", hidden_sizes=(4,)))),
    },
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
async def test_one_and_four_cells_learn_the_same_bits(settings: dict[str, Any]) -> None:
    assert_same(*[await trained(config_for(cells, **settings)) for cells in (1, 4)])
    assert not worker_processes()


async def test_statistics_are_those_of_the_shards_that_have_any_step() -> None:
    """As where a machine is lost, and with it what was collected there. Warnings, such as torch's of the deviation of
    nothing, are errors."""
    config = config_for(1, 2, backend="inline", environment=f"{__name__}:OneStepEpisodes", horizon=1)
    valid: list[list[bool]] = []
    found: list[dict[str, float]] = []
    async with Trainer(config).start() as run:
        async for state in run.states():
            if state.experience is not None and state.loss_stats is not None:
                valid.append(state.experience["valid"].ravel().tolist())
                found.append(dict(state.loss_stats))
    assert any(sum(of_epoch) == 4 for of_epoch in valid), "half of them"
    for statistics in found:
        assert np.isfinite([statistics[name] for name in ("value", "return", "reward", "advantage")]).all()


async def test_threads_learn_the_same_bits_as_processes() -> None:
    assert_same(await trained(config_for(2)), await trained(config_for(2, backend="inline")))


async def test_there_are_as_many_shards_as_cells_unless_told_otherwise() -> None:
    one = await trained(dataclasses.replace(config_for(1), learning=LearningConfig(shards=2)))
    two = await trained(dataclasses.replace(config_for(2), learning=LearningConfig()))
    assert_same(one, two)


async def test_a_shard_without_enough_valid_steps_counts_as_nothing() -> None:
    """Environments whose episodes take a step make every other step one that only resets."""

    def config(cells: int) -> TrainerConfig:
        learning = LearningConfig(minibatches=4, update_epochs=2, shards=4)
        made = config_for(cells, horizon=2, epochs=10, environment="CartPole-v1")
        return dataclasses.replace(made, learning=learning, max_episode_steps=1)

    assert_same(await trained(config(1)), await trained(config(4)))


def saving(config: TrainerConfig, folder: Path) -> TrainerConfig:
    return dataclasses.replace(config, run_dir=folder, checkpoints=CheckpointsConfig(every=1))


async def test_a_run_resumes_exactly_on_another_number_of_cells(tmp_path: Path) -> None:
    policy = PolicyConfig(hidden_sizes=(8,), normalize_observations=True, normalize_rewards=True)
    whole = await trained(config_for(1, epochs=9, policy=policy))
    folder = tmp_path / "run"
    for cells, epochs in ((2, 3), (4, 6)):
        config = saving(config_for(cells, epochs=epochs, policy=policy), folder)
        await trained(config, resume=folder if folder.exists() else None)
    config = saving(config_for(1, epochs=9, policy=policy), folder)
    # Without a number of its own, a resumed run keeps that of its shards.
    unsaid = dataclasses.replace(config, learning=dataclasses.replace(config.learning, shards=None))
    assert_same(whole, await trained(unsaid, resume=folder))
    # And tells the times of the cells that it has.
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    cells = [sum(name.startswith("time/learn_cell_") for name in record) for record in records]
    assert cells == [2] * 3 + [4] * 3 + [0] * 3
    assert [("time/exchange" in record, "time/exchange_bytes" in record) for record in records] == (
        [(True, True)] * 6 + [(False, False)] * 3
    )


async def test_another_number_of_shards_is_refused_on_resume(tmp_path: Path) -> None:
    config = saving(config_for(2, shards=2, epochs=2), tmp_path / "run")
    await trained(config)
    more = dataclasses.replace(
        config, total_agent_steps=10_000, learning=dataclasses.replace(config.learning, shards=4)
    )
    with pytest.raises(ConfigurationError, match=r"(?s)learning\.shards = 4.*2: a resumed run keeps"):
        await trained(more, resume=tmp_path / "run")


# What differs between cells.


class Counting(nn.Module):
    """Keeps in a buffer what it has seen while it learned."""

    def __init__(self, spaces: Any) -> None:
        super().__init__()
        self.actor, self.critic = nn.Linear(4, spaces.action_parameters), nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, observation: Any) -> Any:
        if self.training:
            self.seen += observation.detach().mean(0)
        return self.actor(observation), self.critic(observation)


@pytest.mark.parametrize("cells", [1, 2])
async def test_a_buffer_that_would_depend_on_the_number_of_cells_is_named(cells: int) -> None:
    policy = PolicyConfig(network="tests.orchestrator.test_cells:Counting")
    with pytest.raises(CellsDiffer, match=r"Counting' changes network\.seen while it learns"):
        await trained(config_for(cells, policy=policy))
    assert not worker_processes()


class Setting(Loss):
    """Shrinks the weights at the end of every epoch, by as much in each cell or not."""

    def __init__(self, differently: bool = False) -> None:
        super().__init__()
        self._differently = differently

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        return evaluation.value.square().mean()

    def on_epoch_end(self, state: TrainerState) -> None:
        assert state.policy is not None
        factor = 0.99 - 0.1 * self.context.cell * self._differently
        with torch.no_grad():
            for parameter in self.context.policy.parameters():
                parameter.mul_(factor)


async def test_a_loss_may_change_the_weights_at_the_end_of_an_epoch() -> None:
    assert_same(*[await trained(config_for(cells), losses_with(Setting())) for cells in (1, 2)])


async def test_weights_that_are_not_the_same_in_all_cells_are_named() -> None:
    with pytest.raises(CellsDiffer, match=r"different values in network\..* after epoch 2"):
        await trained(config_for(2), losses_with(Setting(differently=True)))
    assert not worker_processes()


class Telling(Loss):
    """Tracks which cell's it is, at the end of the training phase."""

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        self.track("cell", self.context.cell)
        return evaluation.value.square().mean()

    def on_train_phase_end(self, state: TrainerState) -> None:
        self.track("first", self.context.cell)


async def test_a_loss_knows_its_cell_and_what_it_tracks_is_averaged_over_minibatches_only() -> None:
    final = await trained(config_for(2), losses_with(Telling()))
    assert final.loss_stats["telling/cell"] == 0.5
    assert final.loss_stats["telling/first"] == 0.0


class NotFinite(Loss):
    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        bad = float("nan") if minibatch.epoch == 2 and minibatch["reward"].shape[0] else 0.0
        return evaluation.value.mean() * (1.0 + bad)


async def test_a_loss_that_is_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteLossError, match="not_finite is not finite in epoch 3"):
        await trained(config_for(2), losses_with(NotFinite()))


# What is refused.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"cells": 3}, r"cells = 3\s+expected: a power of two.*\s+cure:\s+set it to the next lower one"),
        ({"cells": 0}, r"cells = 0"),
        (
            {"cells": 4, "learning": LearningConfig(shards=2)},
            r"cells = 4\s+expected: a divisor of learning\.shards = 2",
        ),
        ({"cells": 16}, r"cells = 16\s+expected: a divisor of collection\.num_environments = 8"),
        ({"learning": LearningConfig(shards=3)}, r"learning\.shards = 3\s+expected: a divisor of .*num_environments"),
        (
            {"cells": 8, "policy": PolicyConfig(network="lstm")},
            r"learning\.minibatches = 2\s+expected: a divisor of the 1 segments of each of 8 shards of an epoch",
        ),
        ({"cell_timeout": 0.0}, r"cell_timeout = 0\.0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_cure(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        Trainer(dataclasses.replace(small_config(num_environments=8), **settings))


@pytest.mark.parametrize("member", [UpdateEpochsTuner(), GradientReporter()])
async def test_what_looks_at_whole_minibatches_is_refused_by_name(member: LearnerCallback) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s)learning\.shards = 4.*{member.name} \(.*on_mb_end"):
        await trained(config_for(1), [*losses_with(NotFinite()), member])


# The command.


def test_the_command_trains_in_cells_and_says_how_they_fare(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator"]
    small = ["--cells", "2", "--total-agent-steps", "2048", "--collection.num-environments", "8"]
    training = [*command, "train", "--run-dir", str(tmp_path / "run"), *small, "--metrics.trace"]
    subprocess.run(training, check=True, timeout=200)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    assert last["time/learn_cell_0"] > 0
    assert last["time/learn_cell_1"] > 0
    assert last["time/exchange"] + last["time/wait_cells"] <= last["time/learn"]
    assert last["time/exchange_bytes"] > 0
    trace = (tmp_path / "run" / "trace.json").read_text()
    assert '"learner 0"' in trace
    assert '"learner 1"' in trace
    shown = subprocess.run(
        [*command, "report", str(tmp_path / "run")], check=True, timeout=200, capture_output=True, text=True
    )
    assert "cells compute, share of learning" in shown.stdout
    assert "cells = 2" in (tmp_path / "run" / "config.toml").read_text()


def test_a_killed_command_leaves_no_learner_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator", "train", "--run-dir", str(tmp_path / "run"), "--cells", "2"]
    with subprocess.Popen([*command, "--checkpoints.every", "1", "--metrics.progress", "off"]) as process:
        try:
            checkpoints = tmp_path / "run" / "checkpoints"
            until(lambda: checkpoints.is_dir() and any(checkpoints.glob("[0-9]*")))
            of_run = psutil.Process(process.pid).children(recursive=True)
            assert of_run
        finally:
            process.kill()
    _, alive = psutil.wait_procs(of_run, timeout=60)
    assert not alive


def until(true: Any) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
