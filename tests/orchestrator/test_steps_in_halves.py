"""Vector environments that step by themselves do so while the policy acts for another group; nothing else changes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from orchestrator import Trainer
from orchestrator.environments import EnvironmentFailed, make_vector, native
from orchestrator.environments.native import halves_of_step
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from orchestrator import TrainerConfig

pytestmark = pytest.mark.slow

CALLS: list[str] = []


class InHalves(SyncVectorEnv):
    """Says when a step begins, and when it is waited for."""

    def __init__(self, num_envs: int) -> None:
        super().__init__([cart_pole] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
        self.group = sum(call.startswith("made") for call in CALLS)
        CALLS.append(f"made {self.group}")

    def begin(self, actions: Any) -> None:
        CALLS.append(f"begin {self.group}")
        self.begun = actions

    def end(self) -> Any:
        CALLS.append(f"end {self.group}")
        return self.step(self.begun)


def cart_pole() -> Any:
    return gymnasium.make("CartPole-v1")


def in_halves(num_envs: int) -> InHalves:
    return InHalves(num_envs)


def in_processes(num_envs: int) -> AsyncVectorEnv:
    return AsyncVectorEnv([cart_pole] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


def in_groups(environment: str, groups: int, **settings: Any) -> TrainerConfig:
    config = small_config(epochs=2, num_environments=4, horizon=16, environment=environment, **settings)
    return dataclasses.replace(config, collection=dataclasses.replace(config.collection, environment_groups=groups))


def trained(config: TrainerConfig) -> dict[str, Any]:
    final = anyio.run(Trainer(config).run)
    assert final.policy is not None
    return {name: array.copy() for name, array in final.policy.tensors.items()}


def test_one_group_steps_while_the_policy_acts_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_IN_HALVES", ((__name__, "InHalves", "begin", "end"),))
    CALLS.clear()
    trained(in_groups(f"{__name__}:in_halves", 2))
    calls = [call for call in CALLS if not call.startswith("made")]
    first = int(calls[0].split()[1])
    one, other = str(first), str(first + 1)
    rollout = [f"begin {one}", *[f"begin {other}", f"end {one}", f"begin {one}", f"end {other}"] * 15]
    rollout += [f"begin {other}", f"end {one}", f"end {other}"]
    assert calls[: len(rollout)] == rollout


@pytest.mark.parametrize(
    ("environment", "library", "begin", "end"),
    [
        (f"{__name__}:in_processes", "gymnasium", "step_async", "step_wait"),
        ("envpool/CartPole-v1", "envpool", "send", "recv"),
        ("ALE/Pong-v5", "ale_py", "send", "recv"),
    ],
)
def test_these_step_by_themselves(
    environment: str, library: str, begin: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    found: list[bool] = []

    def looked_at(vector: Any) -> Any:
        halves = halves_of_step(vector)
        found.append(halves == (getattr(vector, begin), getattr(vector, end)))
        return halves

    monkeypatch.setattr(native, "halves_of_step", looked_at)
    make_vector(environment, 2).close()
    assert found == [True]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("environment", [f"{__name__}:in_processes", "envpool/CartPole-v1", "ALE/Pong-v5"])
def test_the_bits_are_those_of_whole_steps(environment: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("envpool", "ale_py"):
        if environment.lower().startswith(package[:3]):
            pytest.importorskip(package)
    weights = trained(in_groups(environment, groups))
    monkeypatch.setattr(native, "_IN_HALVES", ())
    expected = trained(in_groups(environment, groups))
    assert all(np.array_equal(array, expected[name]) for name, array in weights.items())


def in_processes_that_fail(num_envs: int) -> AsyncVectorEnv:
    def failing() -> Any:
        class Failing(gymnasium.Wrapper[Any, Any, Any, Any]):
            taken = 0

            def step(self, action: Any) -> Any:
                self.taken += 1
                if self.taken == 5:
                    raise RuntimeError("the cart is gone")
                return super().step(action)

        return Failing(cart_pole())

    return AsyncVectorEnv([failing] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


@pytest.mark.filterwarnings("ignore::UserWarning")  # which gymnasium tells errors by, too
def test_a_step_that_fails_in_a_process_ends_the_run_whatever_the_other_group_does() -> None:
    with pytest.raises(EnvironmentFailed, match="step 5 of .* failed with RuntimeError: the cart is gone"):
        trained(in_groups(f"{__name__}:in_processes_that_fail", 2))
