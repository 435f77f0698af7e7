"""Steps of a policy that are replayed give the bits of those that are not, or a warning says why none are. Here the
operations are recorded and replayed on the CPU, and on an emulated device (recorded_graph.py)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import pytest
import torch

from orchestrator import Hook, PolicyConfig, Trainer, TrainerConfig
from orchestrator.config.settings import TypePolicy
from orchestrator.policies import capture, replays
from orchestrator.policies.capture import GraphsError
from tests.orchestrator.collection.collecting import (
    HORIZON,
    ROLLOUTS,
    VARIANTS,
    collecting,
    experience,
    with_graphs,
)
from tests.orchestrator.emulated_device import DEVICE, Emulation
from tests.orchestrator.recorded_graph import RecordedOperations, record_on_cpu
from tests.orchestrator.training import small_config
from tests.small_networks import Recurrent, Separate, Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.collection.collector import CollectReport
    from orchestrator.policies.network import Observation
    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow


class Declared(Shared):
    capturable = True


class DeclaredSeparate(Separate):
    capturable = True


class DeclaredWithMemory(Recurrent):
    capturable = True


class Spoiling(Declared):
    """Changes what it is given."""

    def forward(self, observation: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(observation, torch.Tensor)
        return super().forward(observation.mul_(2.0))


Spoiling.capturable = True


class Reading(Declared):
    capturable = True

    def forward(self, observation: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        parameters, value = super().forward(observation)
        return (parameters if float(value.detach().sum()) < 1e9 else 2.0 * parameters), value


class Tokens(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(0, 255, (6, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**options)
        return self._observed(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observed(), float(action == 1), bool(self.np_random.random() < 0.1), False, {}

    def _observed(self) -> Any:
        return self.np_random.integers(0, 255, (6, 3), np.uint8)


def network(made: type[Any], **settings: Any) -> dict[str, Any]:
    return {"policy": PolicyConfig(network=f"{__name__}:{made.__name__}", **settings)}


RECORDED: dict[str, dict[str, Any]] = {
    **{name: settings for name, settings in VARIANTS.items() if not name.startswith("own")},
    "own network": network(Declared),
    "own separate network": network(DeclaredSeparate),
    "own network with memory": network(DeclaredWithMemory),
    "own network that changes what it is given": network(Spoiling),
    "groups": {"groups": 3},
    "lstm in groups": VARIANTS["lstm"] | {"groups": 3},
    "masked lstm in groups": VARIANTS["masked"] | VARIANTS["lstm"] | {"groups": 3},
    "cut episodes of an lstm": VARIANTS["cut episodes"] | VARIANTS["lstm"],
    "dict": {"environment": "tests.environments:make_wandering", "environment_options": {"observation": "dict"}},
    "tokens": {"environment": f"{__name__}:Tokens", "policy": PolicyConfig(network="tokens", hidden_sizes=(8,))},
    "tokens lstm": {"environment": f"{__name__}:Tokens", "policy": PolicyConfig(network="tokens_lstm", latents=3)},
    "types with policies of their own": {
        "environment": "tests.games:HideAndSeek",
        "policy": PolicyConfig(hidden_sizes=(8,), by_type=(TypePolicy(type="seeker"), TypePolicy(type="hider"))),
    },
    "types with memories of their own": {
        "environment": "tests.games:HideAndSeek",
        "policy": PolicyConfig(
            network="lstm", lstm_size=4, by_type=(TypePolicy(type="seeker", network="mlp"), TypePolicy(type="hider"))
        ),
    },
}


def replayed_steps(reports: list[CollectReport]) -> list[float]:
    assert not any(report.warnings for report in reports)
    return [report.rollout_stats["replayed_steps"][0] for report in reports]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


def all_but_the_first(groups: int) -> list[float]:
    """Steps that are replayed of the rollouts of two collectors: three are done, one is recorded, one is compared."""
    steps, missing = float(groups * HORIZON), groups * (replays.WARM_UP + 2)
    return [steps - missing, steps, steps - missing]


@pytest.mark.parametrize("variant", RECORDED)
def test_a_device_that_repeats_steps_records_what_one_does_that_is_told_them(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(capture.CAPTURES, "emulated", RecordedOperations)
    config = collecting(**RECORDED[variant])
    with Emulation():
        expected = experience(DEVICE, config)
    reports: list[CollectReport] = []
    with Emulation() as emulation:
        found = experience(DEVICE, with_graphs(config, True), reports)
    assert_same(found, expected)
    groups = config.collection.environment_groups
    assert replayed_steps(reports) == all_but_the_first(groups)
    # The actions of each step; and for each rollout, and for each comparison, what else there is.
    assert ROLLOUTS * groups * HORIZON <= emulation.reads <= ROLLOUTS * (groups * HORIZON + 10) + 2 * groups * 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", RECORDED)
def test_cuda_repeats_steps_as_it_is_told_them(variant: str) -> None:
    config = collecting(**RECORDED[variant])
    expected = experience("cuda", config)
    reports: list[CollectReport] = []
    found = experience("cuda", with_graphs(config, True), reports)
    assert replayed_steps(reports) == all_but_the_first(config.collection.environment_groups)
    assert_same(found, expected)


class Seen(Hook):
    """Of each epoch, how many steps were replayed, and whether all else was as in another run."""

    def __init__(self) -> None:
        self.replayed: list[float] = []
        self.returns: list[Any] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        assert state.rollout_stats is not None
        self.replayed.append(sum(state.rollout_stats.get("replayed_steps", (-1.0,))))
        self.returns.append(state.rollout_stats.get("episode_return"))


def trained(config: TrainerConfig, **given: Any) -> tuple[dict[str, Any], Seen]:
    seen = Seen()
    config = dataclasses.replace(config, learning=dataclasses.replace(config.learning, graphs=False))
    final = anyio.run(Trainer(config, hooks=[seen], **given).run)
    assert final.policy is not None
    return {name: array.copy() for name, array in final.policy.tensors.items()}, seen


def both(config: TrainerConfig) -> tuple[Seen, Seen]:
    """Runs with graphs and without, which end with the same weights."""
    weights, seen = trained(with_graphs(config, True))
    expected, without = trained(with_graphs(config, False))
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    assert seen.returns == without.returns
    assert set(without.replayed) == {-1.0}
    return seen, without


def in_groups(config: TrainerConfig, groups: int) -> TrainerConfig:
    return dataclasses.replace(config, collection=dataclasses.replace(config.collection, environment_groups=groups))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(small_config(), id="mlp"),
        pytest.param(small_config(staleness=0), id="staleness 0"),
        pytest.param(small_config(staleness=0.5, epochs=10), id="staleness 0.5"),
        pytest.param(small_config(policy=PolicyConfig(network="lstm", lstm_size=4)), id="lstm"),
        pytest.param(in_groups(small_config(environment="Pendulum-v1"), 2), id="groups"),
        pytest.param(small_config(**network(Spoiling)), id="own network"),
        pytest.param(small_config(collectors=2), id="two collectors"),
    ],
)
def test_a_run_that_replays_steps_ends_with_the_same_bits(
    config: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_on_cpu(monkeypatch)
    seen, _ = both(config)
    collection = config.collection
    assert seen.replayed[-1] == collection.horizon * collection.environment_groups * collection.collectors


class NotRecordable(RecordedOperations):
    def record(self, function: Callable[[], object]) -> Callable[[], None]:
        raise RuntimeError("no recording today")


class Wrong(RecordedOperations):
    """Replays what has been."""

    def record(self, function: Callable[[], object]) -> Callable[[], None]:
        super().record(function)
        return lambda: None


@pytest.mark.parametrize("wrong", [NotRecordable, Wrong])
def test_what_cannot_be_repeated_is_said_once_and_done_without(
    wrong: type[RecordedOperations], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(capture.CAPTURES, "cpu", wrong)
    seen, _ = both(small_config(collectors=2))
    assert set(seen.replayed) == {0.0}
    said = [record.getMessage() for record in caplog.records if "without graphs" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("collection.graphs: collectors go on without graphs, because a step of the policy ")
    assert ("no recording today" if wrong is NotRecordable else "differs from one that is not") in said[0]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (Shared, "the network Shared does not say that it can be recorded"),
        (Separate, "the network Separate does not say that it can be recorded"),
        (Reading, "a step of the policy can't be recorded: CannotCapture: aten::item reads from the device"),
    ],
)
def test_a_network_that_cannot_be_repeated_is_named(
    made: type[Any], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record_on_cpu(monkeypatch)
    where = __name__ if made is Reading else "tests.small_networks"
    seen, _ = both(small_config(policy=PolicyConfig(network=f"{where}:{made.__name__}")))
    assert set(seen.replayed) == {0.0}
    assert reason in caplog.text


def test_new_episodes_after_a_resumption_begin_without_memory_and_are_replayed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an environment whose state can't be had."""
    record_on_cpu(monkeypatch)
    lstm = PolicyConfig(network="lstm", lstm_size=4)
    config = small_config(epochs=6, environment="tests.environments:make_opaque", policy=lstm)
    ended: list[dict[str, Any]] = []
    for graphs in (True, False):
        chosen = dataclasses.replace(with_graphs(config, graphs), run_dir=tmp_path / str(graphs))
        trained(dataclasses.replace(chosen, total_agent_steps=300))
        weights, _ = trained(chosen, resume=tmp_path / str(graphs))
        ended.append(weights)
    assert all(np.array_equal(array, ended[1][name]) for name, array in ended[0].items())


def test_a_run_may_be_resumed_with_graphs_and_without(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_cpu(monkeypatch)
    config = small_config(epochs=6, policy=PolicyConfig(network="lstm", lstm_size=4))
    whole, _ = trained(config)
    for graphs in (True, False):
        chosen = dataclasses.replace(with_graphs(config, graphs), run_dir=tmp_path / str(graphs))
        trained(dataclasses.replace(chosen, total_agent_steps=300))
        resumed, seen = trained(with_graphs(chosen, not graphs), resume=tmp_path / str(graphs))
        assert (seen.replayed[-1] > 0) != graphs
        assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_a_device_without_graphs_is_named_at_the_start(backend: Any) -> None:
    expected = r"collection\.graphs is true, but .* 'cpu'.* set collection\.device to 'cuda'"
    with pytest.raises(GraphsError, match=expected):
        trained(with_graphs(small_config(backend=backend), True))
