"""torch.compile of what the learner computes of the policy: the same run up to rounding, and an error at the start
where it can't be had."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator import LearningConfig, PolicyConfig, Trainer, TrainerConfig
from orchestrator.learning.compilation import CompilationError
from tests.orchestrator.training import small_config
from tests.small_networks import Shared

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

COMPILED = LearningConfig(update_epochs=2, minibatches=3, compile=True, threads=1, learning_rate=1e-3)


@torch.library.custom_op("tests_of_compilation::same", mutates_args=())
def same_numbers(x: Tensor) -> Tensor:
    return x.clone()


@same_numbers.register_fake
def _(x: Tensor) -> Tensor:
    raise ValueError("its shape is a secret")


def _backward(ctx: Any, gradient: Tensor) -> Tensor:
    return gradient


same_numbers.register_autograd(_backward)


class Secretive(Shared):
    """Works, but can't be compiled."""

    def forward(self, observation: Any) -> tuple[Tensor, Tensor]:
        output = same_numbers(self.layer(observation))
        return output[:, :-1], output[:, -1]


class Reading(Shared):
    """Looks at numbers, which no graph can."""

    def forward(self, observation: Any) -> tuple[Tensor, Tensor]:
        output = self.layer(observation)
        if float(output.detach().sum().item()) > 1e9:
            output = output * 0.5
        return output[:, :-1], output[:, -1]


def weights(config: TrainerConfig, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    policy = anyio.run(Trainer(config, **options).run).policy
    assert policy is not None
    return {name: np.array(tensor) for name, tensor in policy.tensors.items()}


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


def uncompiled(config: TrainerConfig) -> TrainerConfig:
    return dataclasses.replace(config, learning=dataclasses.replace(config.learning, compile=False))


def test_a_compiled_run_learns_the_same_and_resumes_exactly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(
        epochs=4, num_environments=3, horizon=32, learning=COMPILED, backend="process", run_dir=tmp_path / "whole"
    )
    with caplog.at_level(logging.INFO, "orchestrator"):
        whole = weights(config)
    assert any(record.message.startswith("compiled in ") for record in caplog.records)
    for name, array in weights(dataclasses.replace(uncompiled(config), run_dir=None)).items():
        np.testing.assert_allclose(whole[name], array, atol=1e-3, err_msg=name)
    half = dataclasses.replace(config, total_agent_steps=150, run_dir=tmp_path / "half")
    weights(half)
    resumed = dataclasses.replace(config, run_dir=tmp_path / "half")
    assert equal(whole, weights(resumed, resume=tmp_path / "half"))


@pytest.mark.parametrize("network", ["lstm", f"{__name__}:Reading"])
def test_what_no_graph_can_have_is_computed_as_it_is(network: str) -> None:
    policy = PolicyConfig(network=network, hidden_sizes=(8,), lstm_size=4)
    config = small_config(epochs=2, num_environments=6, learning=COMPILED, policy=policy)
    compiled = weights(config)
    for name, array in weights(uncompiled(config)).items():
        np.testing.assert_allclose(compiled[name], array, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_a_network_that_cannot_be_compiled_is_named_at_the_start(backend: Any) -> None:
    policy = PolicyConfig(network=f"{__name__}:Secretive")
    config = small_config(num_environments=3, learning=COMPILED, policy=policy, backend=backend)
    with pytest.raises(CompilationError, match=r"Secretive.*cpu.*its shape is a secret") as caught:
        weights(config)
    assert "set learning.compile to false" in str(caught.value)
    weights(uncompiled(config))


def test_a_missing_compiler_is_named_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    config = small_config(num_environments=3, learning=COMPILED, backend="process")
    with pytest.raises(CompilationError, match=r"compiler.*install g\+\+ or clang\+\+"):
        weights(config)
