"""Networks by name: which is chosen, what an own one may be, and clear errors about those that cannot serve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from orchestrator.config.settings import PolicyConfig
from orchestrator.policies import NetworkError, Spaces, build_policy

SPACES = Spaces(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(4))
IMAGES = Spaces(spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(4))
CONFIG = PolicyConfig()
HERE = __name__


# Networks of one's own, as a user would write them.


class Own(nn.Module):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.body = nn.Linear(3, 8)
        self.actor = nn.Linear(8, spaces.action_parameters)
        self.critic = nn.Linear(8, 1)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.body(observation))
        return self.actor(features), self.critic(features)


class OwnRecurrent(nn.Module):
    state_size = 3

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.actor = nn.Linear(3, spaces.action_parameters)

    def forward(self, observation: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sums: list[Tensor] = []
        for step in range(observation.shape[1]):
            state = state.masked_fill(episode_start[:, step, None], 0.0) + observation[:, step]
            sums.append(state)
        return self.actor(torch.stack(sums, 1)), torch.stack(sums, 1).sum(-1), state


class WrongShape(Own):
    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        parameters, value = super().forward(observation)
        return parameters[:, 1:], value


class NoTuple(Own):
    def forward(self, observation: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(observation)[0]


class Failing(Own):
    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        raise KeyError("camera")


class WrongSeparate(Own):
    def action_parameters(self, observation: Tensor) -> Tensor:
        return self.forward(observation)[0]

    def value(self, observation: Tensor) -> Tensor:
        return self.forward(observation)[0]


class WrongState(OwnRecurrent):
    def forward(self, observation: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parameters, value, state = super().forward(observation, state, episode_start)
        return parameters, value, state[:, :1]


class NoStateSize(OwnRecurrent):
    state_size = 0


class HalfPrecision(Own):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__(spaces)
        self.half()


def unregistered(spaces: Spaces) -> nn.Module:
    network = nn.Module()
    network.__dict__["layers"] = [nn.Linear(3, 4)]
    return network


def no_module(spaces: Spaces) -> object:
    return "a network"


def raising(spaces: Spaces) -> nn.Module:
    raise RuntimeError("no weights file")


NOT_A_FUNCTION = 3


# Which network.


def test_auto_looks_at_images_with_a_cnn_and_at_everything_else_with_an_mlp() -> None:
    assert type(build_policy(CONFIG, IMAGES, seed=1).network).__name__ == "CNN"
    assert type(build_policy(CONFIG, SPACES, seed=1).network).__name__ == "MLP"


def test_an_own_network_may_be_a_class_or_a_function_and_give_values_with_one_column() -> None:
    policy = build_policy(replace(CONFIG, network=f"{HERE}:Own"), SPACES, seed=1)
    assert policy.value(torch.randn(2, 3)).shape == (2,)
    assert not policy.recurrent


def test_an_own_network_with_memory_is_recognised_by_its_state_size() -> None:
    policy = build_policy(replace(CONFIG, network=f"{HERE}:OwnRecurrent"), SPACES, seed=1)
    assert policy.recurrent
    assert policy.state_size == 3
    start = torch.zeros(2, 4, dtype=torch.bool)
    start[0, 2] = True
    evaluation = policy.evaluate(torch.ones(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 3), start)
    assert evaluation.value.tolist() == [[6.0, 9.0, 3.0, 6.0], [6.0, 9.0, 12.0, 15.0]]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("mlpp", r"there is no network 'mlpp': did you mean mlp\?; one of your own is named"),
        ("transformer", "there is no network 'transformer': use one of auto, mlp, cnn, lstm, tokens, tokens_lstm;"),
        ("no_such_module:make", "there is no module no_such_module: install it, or start in the folder"),
        (f"{HERE}:Ownn", "has no Ownn: did you mean Own"),
        (f"{HERE}:NOT_A_FUNCTION", "is not a function but of type int"),
        (f"{HERE}:raising", r"failed at .*test_network_factory.py:\d+: RuntimeError: no weights file"),
        (f"{HERE}:no_module", "returned str, expected a torch.nn.Module"),
        (f"{HERE}:unregistered", "make it nn.ModuleList"),
        (f"{HERE}:HalfPrecision", "body.weight of the network .* is torch.float16, expected float32"),
        (f"{HERE}:Failing", r"forward of .* failed on observations of \[2, 3\] float32 at .*: KeyError: 'camera'"),
        (
            f"{HERE}:WrongShape",
            r"returned \[2, 3\] float32, \[2, 1\] float32 for observations of \[2, 3\] float32; "
            r"expected action parameters \[2, 4\], value \[2\]",
        ),
        (f"{HERE}:NoTuple", r"returned \[2, 4\] float32 for .* expected action parameters \[2, 4\], value \[2\]"),
        (f"{HERE}:WrongSeparate", r"value of the network .* returned \[2, 4\] float32 .* expected value \[2\]"),
        (f"{HERE}:WrongState", r"\[2, 1\] float32 for .* value \[2, 3\], state \[2, 3\]"),
        (f"{HERE}:NoStateSize", "the state_size of the network .* is 0, expected an int of at least 1"),
    ],
)
def test_a_network_that_cannot_serve_is_an_error_that_says_what_to_do(network: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build_policy(replace(CONFIG, network=network), SPACES, seed=1)


def test_a_module_that_fails_on_import_is_named_with_the_place(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("own")
    (folder / "broken_network.py").write_text("x = 1\ny = x / 0\n")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(NetworkError, match=r"ZeroDivisionError: division by zero at .*broken_network.py:2"):
        build_policy(replace(CONFIG, network="broken_network:make"), SPACES, seed=1)


def test_the_check_leaves_running_statistics_and_the_training_mode_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Normed(Own):
        def __init__(self, spaces: Spaces) -> None:
            super().__init__(spaces)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(self.norm(observation))

    monkeypatch.setattr(f"{HERE}.Normed", Normed, raising=False)
    policy = build_policy(replace(CONFIG, network=f"{HERE}:Normed"), SPACES, seed=1)
    assert policy.training
    assert policy.network.training
    norm = policy.network.norm
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 0
