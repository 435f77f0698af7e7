"""What the learner's network is computed with, chosen by a setting: refused where it can't be, and otherwise a run like
any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import anyio
import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator import (
    ConfigurationError,
    LearningConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
    load_policy,
)
from orchestrator.deployment.export import export_policy
from orchestrator.policies.network import NetworkError, Spaces
from tests.orchestrator.training import small_config
from tests.small_networks import Shared

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


BFLOAT16 = LearningConfig(update_epochs=2, minibatches=2, precision="bfloat16", threads=1)
NETWORKS = {
    "mlp": PolicyConfig(hidden_sizes=(8,)),
    "lstm": PolicyConfig(network="lstm", hidden_sizes=(8,), lstm_size=4),
    "one step": PolicyConfig(network="lstm", hidden_sizes=(), lstm_size=4),
    "own": PolicyConfig(network="tests.small_networks:make_shared"),
    "own with memory": PolicyConfig(network="tests.small_networks:make_recurrent"),
}


class Tokens(gymnasium.Env[Any, Any]):
    """Tokens as MettaGrid's, and episodes of ten steps."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self.np_random.integers(0, 255, (4, 3), np.uint8), float(action), self._steps == 10, False, {}


class Images(Tokens):
    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self.np_random.integers(0, 255, (8, 8, 3), np.uint8), float(action), self._steps == 10, False, {}


class Strict(Shared):
    """Multiplies float32 with what its first layer returns, which must be float32, too."""

    def forward(self, observation: Any) -> tuple[Tensor, Tensor]:
        output = self.layer(observation)
        with torch.autocast("cpu", enabled=False):
            mixed = output @ torch.eye(output.shape[1])
        return mixed[:, :-1], mixed[:, -1]


class Seen(nn.Linear):
    """Tells in the file what its products are."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        output = super().forward(x)
        if self.training:
            with Path(_seen).open("a") as file:
                file.write(f"{output.dtype} {self.weight.dtype}\n")
        return output


_seen = ""


class Telling(Shared):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__(spaces)
        self.layer = Seen(self.layer.in_features, self.layer.out_features)


async def weights(config: TrainerConfig, **options: Any) -> dict[str, Any]:
    policy = (await Trainer(config, **options).run()).policy
    assert policy is not None
    return {name: np.array(tensor) for name, tensor in policy.tensors.items()}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("device", ["cpu", "auto"])
async def test_tf32_is_refused_without_cuda_at_the_start(device: str) -> None:
    if device == "auto" and torch.cuda.is_available():
        pytest.skip("auto is cuda here")
    learning = dataclasses.replace(BFLOAT16, precision="tf32")
    with pytest.raises(ConfigurationError) as caught:
        await Trainer(small_config(learning=learning, device=device)).run()
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("learning.precision", "tf32")
    assert "cpu" in problem.expected
    assert "set it to float32, or device to cuda" in problem.cure


def test_a_precision_that_does_not_exist_is_refused_with_those_that_do() -> None:
    learning: Any = dataclasses.replace(BFLOAT16, precision="float16")
    with pytest.raises(ConfigurationError, match="float32, tf32, bfloat16"):
        Trainer(small_config(learning=learning))


def test_the_networks_products_are_bfloat16_and_its_weights_float32(tmp_path: Path) -> None:
    global _seen
    _seen = str(tmp_path / "seen")
    policy = PolicyConfig(network=f"{__name__}:Telling")
    found = anyio.run(weights, small_config(learning=BFLOAT16, policy=policy))
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    lines = Path(_seen).read_text().splitlines()
    assert "torch.bfloat16 torch.float32" in lines


@pytest.mark.parametrize("network", NETWORKS)
async def test_a_seed_gives_the_same_bits_with_bfloat16_and_others_than_with_float32(network: str) -> None:
    config = small_config(
        epochs=3, learning=BFLOAT16, policy=NETWORKS[network], horizon=1 if network == "one step" else 32
    )
    first = await weights(config)
    assert same(first, await weights(config))
    exact = await weights(dataclasses.replace(config, learning=dataclasses.replace(BFLOAT16, precision="float32")))
    assert not same(first, exact)
    for name, array in exact.items():
        np.testing.assert_allclose(first[name], array, atol=0.1, err_msg=name)


async def test_processes_learn_in_bfloat16_what_threads_learn() -> None:
    config = small_config(epochs=3, learning=BFLOAT16, backend="process")
    inline = dataclasses.replace(config, collection=dataclasses.replace(config.collection, backend="inline"))
    assert same(await weights(config), await weights(inline))


@pytest.mark.parametrize(
    ("environment", "network"), [("Tokens", "tokens"), ("Tokens", "tokens_lstm"), ("Images", "cnn"), ("Images", "lstm")]
)
async def test_every_network_learns_in_bfloat16(environment: str, network: str) -> None:
    policy = PolicyConfig(network=network, hidden_sizes=(8,), lstm_size=4)
    environment = f"{__name__}:{environment}"
    found = await weights(small_config(epochs=2, environment=environment, learning=BFLOAT16, policy=policy))
    assert all(np.isfinite(array).all() for array in found.values())


@pytest.mark.parametrize("network", ["mlp", "lstm"])
async def test_a_run_in_bfloat16_resumes_exactly_and_its_policy_can_be_loaded(network: str, tmp_path: Path) -> None:
    config = small_config(epochs=4, learning=BFLOAT16, policy=NETWORKS[network], run_dir=tmp_path / "whole")
    whole = await weights(config)
    half = dataclasses.replace(config, total_agent_steps=200, run_dir=tmp_path / "half")
    await weights(half)
    resumed = dataclasses.replace(config, run_dir=half.run_dir)
    assert same(whole, await weights(resumed, resume=tmp_path / "half"))
    policy = load_policy(tmp_path / "half")
    assert policy.config.learning.precision == "bfloat16"
    if policy.recurrent:
        policy.act(np.zeros(4, np.float32), state=policy.initial_state())
    else:
        policy.act(np.zeros(4, np.float32))
    export_policy(policy, "torch", tmp_path / "exported")


async def test_another_precision_is_refused_on_resume(tmp_path: Path) -> None:
    config = small_config(epochs=2, learning=BFLOAT16, run_dir=tmp_path / "run")
    await Trainer(config).run()
    longer = dataclasses.replace(config, total_agent_steps=10_000)
    changed = dataclasses.replace(longer, learning=dataclasses.replace(BFLOAT16, precision="float32"))
    with pytest.raises(ConfigurationError, match=r"learning\.precision"):
        await Trainer(changed, resume=tmp_path / "run").run()


@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_a_network_that_cannot_compute_with_a_precision_is_named_at_the_start(backend: Any) -> None:
    policy = PolicyConfig(network=f"{__name__}:Strict")
    with pytest.raises(NetworkError, match=r"Strict.*learning\.precision = 'bfloat16'.*set it to float32") as caught:
        await Trainer(small_config(learning=BFLOAT16, policy=policy, backend=backend)).run()
    assert "cpu" in str(caught.value)
    exact = dataclasses.replace(BFLOAT16, precision="float32")
    await Trainer(small_config(epochs=2, learning=exact, policy=policy, backend=backend)).run()
