"""The result of a run depends on the seed, not on the machine's scheduling nor on where the workers run."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

from orchestrator import LearningConfig, PolicyConfig, Trainer
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    """The result is the same in every event loop, as one test here shows."""
    return "asyncio"


async def final_weights(**settings: Any) -> dict[str, NDArray[Any]]:
    final = await Trainer(small_config(epochs=8, **settings)).run()
    assert final.policy is not None
    return {name: array.copy() for name, array in final.policy.tensors.items()}


def same(first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]]) -> bool:
    assert first.keys() == second.keys()
    return all(np.array_equal(first[name], second[name], equal_nan=True) for name in first)


@pytest.mark.parametrize("staleness", [0, 0.25, 1, 3])
async def test_the_same_seed_gives_bitwise_the_same_weights_twice_and_on_every_backend(staleness: float) -> None:
    reference = await final_weights(staleness=staleness, backend="inline")
    assert same(reference, await final_weights(staleness=staleness, backend="inline"))
    assert same(reference, await final_weights(staleness=staleness, backend="process"))
    assert same(reference, await final_weights(staleness=staleness, backend="process"))
    assert not same(reference, await final_weights(staleness=staleness, seed=2))


async def test_minibatches_of_many_rows_give_bitwise_the_same_weights_twice_and_on_every_backend() -> None:
    learning = LearningConfig(update_epochs=1, minibatches=1)  # of 8,192 rows, which networks compute in parts
    settings = {"learning": learning, "num_environments": 64, "horizon": 128, "total_agent_steps": 2 * 8192}
    results = [await final_weights(backend=backend, **settings) for backend in ("inline", "inline", "process")]
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_the_same_seed_gives_bitwise_the_same_weights_in_every_event_loop() -> None:
    results = [anyio.run(partial(final_weights, backend="inline"), backend=backend) for backend in ("asyncio", "trio")]
    assert same(*results)


async def test_staleness_changes_what_is_learned() -> None:
    weights = [await final_weights(staleness=staleness) for staleness in (0, 0.25, 1)]
    assert not any(same(one, other) for one, other in combinations(weights, 2))


@pytest.mark.parametrize(
    "policy",
    [
        PolicyConfig(network="lstm", hidden_sizes=(8,), lstm_size=4),
        PolicyConfig(hidden_sizes=(8,), normalize_observations=True, normalize_rewards=True),
    ],
    ids=["lstm", "normalised"],
)
async def test_recurrent_and_normalised_policies_are_deterministic_too(policy: PolicyConfig) -> None:
    reference = await final_weights(policy=policy, backend="inline")
    assert same(reference, await final_weights(policy=policy, backend="process"))


async def test_batches_of_the_usual_size_are_deterministic_too() -> None:
    """Where there are many rows, networks compute some things in other ways than where there are few."""
    settings: dict[str, Any] = {
        "num_environments": 64,
        "horizon": 64,
        "policy": PolicyConfig(),
        "learning": LearningConfig(update_epochs=2, minibatches=2),
    }
    assert same(await final_weights(backend="inline", **settings), await final_weights(backend="process", **settings))


async def test_several_collectors_are_deterministic() -> None:
    reference = await final_weights(collectors=2, backend="process")
    assert same(reference, await final_weights(collectors=2, backend="inline"))
