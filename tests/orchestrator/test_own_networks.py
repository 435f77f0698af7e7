"""Networks of one's own train whatever they do with their tensors, or are refused by name."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator import EvaluationConfig, PolicyConfig, Trainer
from orchestrator.policies import NetworkError, Observation, Spaces
from tests.orchestrator.training import small_config
from tests.small_networks import Recurrent, Separate, Shared

pytestmark = pytest.mark.slow


def own(function: str) -> PolicyConfig:
    return PolicyConfig(network=f"tests.orchestrator.test_own_networks:{function}")


class Half(Shared):
    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(observation)


class HalfSeparate(Separate):
    def action_parameters(self, observation: Observation) -> Tensor:
        return super().action_parameters(observation).to(torch.float16)

    def value(self, observation: Observation) -> Tensor:
        return super().value(observation).to(torch.bfloat16)


class HalfRecurrent(Recurrent):
    def forward(self, observation: Observation, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parameters, value, state = super().forward(observation, state, episode_start)
        return parameters.bfloat16(), value.half(), state.bfloat16()


class Double(Shared):
    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        parameters, value = super().forward(observation)
        return parameters.double(), value.double()


def make_half(spaces: Spaces) -> Half:
    return Half(spaces)


def make_half_separate(spaces: Spaces) -> HalfSeparate:
    return HalfSeparate(spaces)


def make_half_recurrent(spaces: Spaces) -> HalfRecurrent:
    return HalfRecurrent(spaces)


def make_double(spaces: Spaces) -> Double:
    return Double(spaces)


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("network", ["make_half", "make_half_separate", "make_half_recurrent", "make_double"])
def test_a_network_may_return_any_floating_point_type(network: str, environment: str) -> None:
    config = small_config(
        epochs=2, environment=environment, policy=own(network), evaluation=EvaluationConfig(every=1, episodes=2)
    )
    final = anyio.run(Trainer(config).run)
    assert final.policy is not None
    assert final.loss_stats is not None
    assert final.eval_scores is not None
    assert all(np.isfinite(array).all() for array in final.policy.tensors.values())


def make_scripted(spaces: Spaces) -> nn.Module:
    network = Shared(spaces)
    network.layer = torch.jit.script(network.layer)
    return network


def make_traced(spaces: Spaces) -> nn.Module:
    network = Shared(spaces)
    network.layer = torch.jit.trace(network.layer, torch.zeros(1, network.layer.in_features))
    return network


def make_traced_within(spaces: Spaces) -> nn.Module:
    network = Shared(spaces)
    layer = torch.jit.trace(network.layer, torch.zeros(1, network.layer.in_features))
    network.layer = nn.Sequential(layer, nn.Identity())  # pyright: ignore[reportAttributeAccessIssue]
    return network


def make_traced_whole(spaces: Spaces) -> nn.Module:
    network = Shared(spaces)
    return torch.jit.trace(network, torch.zeros(1, network.layer.in_features))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("network", "module"),
    [
        ("make_scripted", "layer"),
        ("make_traced", "layer"),
        ("make_traced_within", "layer.0"),
        ("make_traced_whole", "the whole"),
    ],
)
def test_modules_of_torch_jit_are_refused_by_name_with_the_cure(network: str, module: str) -> None:
    with pytest.raises(NetworkError, match=f"^{module} of the network '.*:{network}' is a module of torch.jit.*assign"):
        anyio.run(Trainer(small_config(epochs=1, policy=own(network))).run)


class Layers(Shared):
    """With more layers in an attribute of any kind."""

    def __init__(self, spaces: Spaces, more: Any) -> None:
        super().__init__(spaces)
        self.more = more


class Tied(Shared):
    """With a table of modules whose parameters are all attributes, too."""

    def __init__(self, spaces: Spaces) -> None:
        super().__init__(spaces)
        self.heads = {"all": nn.Sequential(self.layer, nn.Identity())}


class WithBackbone(Shared):
    """With a part that its constructor has put into evaluation mode."""

    def __init__(self, spaces: Spaces) -> None:
        super().__init__(spaces)
        self.backbone = nn.BatchNorm1d(4).requires_grad_(False).eval()

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        assert not self.backbone.training
        assert isinstance(observation, Tensor)
        return super().forward(self.backbone(observation))


@pytest.mark.parametrize("network", ["Tied", "WithBackbone"])
@pytest.mark.parametrize("staleness", [0, 1])
def test_what_is_rightly_of_a_networks_own_stays_as_it_is(network: str, staleness: int) -> None:
    final = anyio.run(Trainer(small_config(epochs=4, staleness=staleness, policy=own(network))).run)
    assert final.epoch >= 4


HIDDEN: dict[str, tuple[Any, str]] = {
    "list": (lambda: [nn.Linear(4, 4)], "more .* is a list with a Linear in it.*make it nn.ModuleList"),
    "tuple": (lambda: (nn.Linear(4, 4),), "more .* is a tuple with a Linear in it.*make it nn.ModuleList"),
    "dict": (lambda: {"a": nn.Linear(4, 4)}, "more .* is a dict with a Linear in it.*make it nn.ModuleDict"),
    "nested": (lambda: [[nn.Linear(4, 4)]], "more .* is a list with a Linear in it"),
    "parameters": (
        lambda: [nn.Parameter(torch.zeros(1))],
        "a list with a Parameter in it.*make it nn.ParameterList",
    ),
}
SEEN: dict[str, Any] = {
    "modules": lambda: nn.ModuleList([nn.Linear(4, 4)]),
    "frozen": lambda: [nn.Linear(4, 4).requires_grad_(False)],
    "numbers": lambda: [1, [2.0], {"a": torch.zeros(1)}],
}
NOT_DENSE: dict[str, tuple[Any, str]] = {
    "coo": (lambda: torch.eye(3).to_sparse(), r"table .* is sparse \(sparse_coo\).*to_dense\(\)"),
    "meta": (lambda: torch.zeros(3, device="meta"), "table .* is on the device meta.*make it on the CPU"),
}


def __getattr__(name: str) -> Any:
    kind, _, case = name.partition("_")
    if kind == "layers":
        make = HIDDEN[case][0] if case in HIDDEN else SEEN[case]
        return lambda spaces: Layers(spaces, make())
    if kind == "dense":

        def made(spaces: Spaces) -> nn.Module:
            network = Shared(spaces)
            network.register_buffer("table", NOT_DENSE[case][0]())
            return network

        return made
    if kind == "sparse":

        def with_parameter(spaces: Spaces) -> nn.Module:
            network = Shared(spaces)
            network.table = nn.Parameter(torch.eye(3).to_sparse())  # pyright: ignore
            return network

        return with_parameter
    raise AttributeError(name)


@pytest.mark.parametrize("case", HIDDEN)
def test_layers_that_torch_does_not_see_are_refused_with_the_cure(case: str) -> None:
    with pytest.raises(NetworkError, match=HIDDEN[case][1]):
        anyio.run(Trainer(small_config(epochs=1, policy=own(f"layers_{case}"))).run)


@pytest.mark.parametrize("case", SEEN)
def test_what_torch_sees_or_is_not_to_be_trained_may_be_in_any_attribute(case: str) -> None:
    anyio.run(Trainer(small_config(epochs=1, policy=own(f"layers_{case}"))).run)


@pytest.mark.parametrize("case", NOT_DENSE)
def test_buffers_that_are_not_dense_are_refused_by_name(case: str) -> None:
    with pytest.raises(NetworkError, match=NOT_DENSE[case][1]):
        anyio.run(Trainer(small_config(epochs=1, policy=own(f"dense_{case}"))).run)


def test_sparse_parameters_are_refused_by_name() -> None:
    with pytest.raises(NetworkError, match="table .* is sparse"):
        anyio.run(Trainer(small_config(epochs=1, policy=own("sparse_parameter"))).run)
