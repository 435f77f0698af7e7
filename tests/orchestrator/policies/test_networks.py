"""The built-in networks: what they compute, against the same written with torch's own modules."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from orchestrator.policies import NetworkError, Spaces
from orchestrator.policies.cnn import CNN, Convolutions, ImageLayout, has_images
from orchestrator.policies.initialization import orthogonal
from orchestrator.policies.mlp import MLP, Dense

VECTOR = spaces.Box(-1.0, 1.0, (3,))
CHOICE = spaces.Discrete(4)


@pytest.mark.parametrize(("name", "module"), [("tanh", nn.Tanh()), ("relu", nn.ReLU()), ("silu", nn.SiLU())])
@pytest.mark.parametrize("rows", [6, 6000, 9000])
@pytest.mark.parametrize("outputs", [1, 2, 20])
def test_dense_layers_compute_what_torchs_linear_layers_do(
    name: str, module: nn.Module, rows: int, outputs: int
) -> None:
    dense = Dense((3, 8, 5, outputs), name, 1.0)
    reference = nn.Sequential(nn.Linear(3, 8), module, nn.Linear(8, 5), module, nn.Linear(5, outputs))
    ours = list(dense.parameters())
    with torch.no_grad():
        for parameter, own in zip(reference.parameters(), ours, strict=True):
            parameter.copy_(own.t())
    x = torch.randn(rows, 3)
    torch.testing.assert_close(dense(x), reference(x))
    dense(x).square().mean().backward()
    reference(x).square().mean().backward()
    for parameter, own in zip(reference.parameters(), ours, strict=True):
        assert parameter.grad is not None
        assert own.grad is not None
        torch.testing.assert_close(own.grad.t(), parameter.grad)


@pytest.mark.parametrize("frozen", [(), (0, 1), (2,), (0, 1, 2, 3), (5,)])
@pytest.mark.parametrize("gain", [None, 1.0], ids=["activated", "linear"])
def test_many_rows_give_the_gradients_that_few_rows_give(gain: float | None, frozen: tuple[int, ...]) -> None:
    for name in ("tanh", "relu"):
        dense = Dense((3, 8, 20, 2), name, gain)
        parameters = list(dense.parameters())
        for index in frozen:
            parameters[index].requires_grad_(False)
        learned = [one for one in parameters if one.requires_grad]
        rows = torch.randn(9000, 3, requires_grad=True)
        few = torch.cat([dense(part) for part in rows.split(1000)])
        many = dense(rows)
        torch.testing.assert_close(many, few)
        direction = torch.randn_like(many) / len(rows)
        for wanted in (learned, [rows, *learned]):
            expected = torch.autograd.grad(few, wanted, direction, retain_graph=True)
            actual = torch.autograd.grad(many, wanted, direction, retain_graph=True)
            torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)
        dense(rows.detach()).backward(direction)
        for parameter, gradient in zip(learned, expected[1:], strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_many_rows_are_differentiable_twice() -> None:
    dense = Dense((3, 8, 2), "tanh", 1.0)
    rows = torch.randn(9000, 3, requires_grad=True)
    (first,) = torch.autograd.grad(dense(rows).square().sum(), rows, create_graph=True)
    penalty = torch.autograd.grad(first.square().mean(), list(dense.parameters())[:3])
    parts = [torch.autograd.grad(dense(part).square().sum(), part, create_graph=True)[0] for part in rows.split(1000)]
    expected = torch.autograd.grad(torch.cat(parts).square().mean(), list(dense.parameters())[:3])
    torch.testing.assert_close(penalty, expected, atol=1e-5, rtol=1e-4)


def test_functional_transforms_differentiate_many_rows_too() -> None:
    dense, rows = Dense((3, 8, 2), "relu", 1.0), torch.randn(9000, 3)
    parameters = dict(dense.named_parameters())
    transformed = torch.func.grad(lambda given: torch.func.functional_call(dense, given, rows).square().mean())(
        parameters
    )
    dense(rows).square().mean().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(transformed[name], parameter.grad)


def test_initial_weights_are_orthogonal_with_a_small_last_layer() -> None:
    first, _, last, _ = Dense((16, 8, 8), "tanh", 0.01).parameters()
    torch.testing.assert_close(first.t() @ first, 2.0 * torch.eye(8))
    torch.testing.assert_close(last.t() @ last, 1e-4 * torch.eye(8))


@pytest.mark.parametrize("shape", [(64, 64), (64, 3), (3, 64), (1, 7), (7, 1), (32, 4, 8, 8)])
def test_random_matrices_have_orthonormal_rows_or_columns_and_spread_evenly(shape: tuple[int, ...]) -> None:
    matrices = torch.stack([orthogonal(*shape, gain=3.0).flatten(1) for _ in range(40)]) / 3.0
    short, long = sorted(matrices.shape[1:])
    first = matrices[0] if matrices.shape[1] == short else matrices[0].t()
    torch.testing.assert_close(first @ first.t(), torch.eye(short), atol=1e-5, rtol=0)
    assert abs(matrices.mean().item()) < 4 * (matrices.numel() * long) ** -0.5


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(NetworkError, match="the activation is 'gelu', expected one of tanh, relu, silu"):
        MLP(Spaces(VECTOR, CHOICE), activation="gelu")


def test_actor_and_critic_of_the_mlp_share_nothing() -> None:
    network = MLP(Spaces(VECTOR, CHOICE))
    parameters, value = network(torch.randn(5, 3))
    value.sum().backward()
    assert all(parameter.grad is None for parameter in network.actor.parameters())
    parameters.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_separate_methods_of_the_mlp_give_what_forward_gives() -> None:
    for action in (CHOICE, spaces.Box(-1.0, 1.0, (2,))):
        network = MLP(Spaces(spaces.Dict({"a": VECTOR, "b": spaces.Discrete(2)}), action), (7,), "silu")
        observation = {"a": torch.randn(5, 3), "b": torch.tensor([0, 1, 1, 0, 1])}
        parameters, value = network(observation)
        assert torch.equal(network.action_parameters(observation), parameters)
        assert torch.equal(network.value(observation), value)
        assert value.shape == (5,)


def test_an_mlp_without_hidden_layers_is_linear() -> None:
    network = MLP(Spaces(VECTOR, CHOICE), hidden_sizes=())
    x = torch.randn(5, 3)
    torch.testing.assert_close(network.action_parameters(2 * x), 2 * network.action_parameters(x))


def test_the_observation_is_left_as_it_was() -> None:
    for network in (MLP(Spaces(VECTOR, CHOICE)), MLP(Spaces(VECTOR, CHOICE), hidden_sizes=())):
        x = torch.randn(5, 3)
        before = x.clone()
        network(x)
        assert torch.equal(x, before)


def test_a_gaussian_policy_learns_a_log_standard_deviation_of_its_own() -> None:
    network = MLP(Spaces(VECTOR, spaces.Box(-1.0, 1.0, (2,))))
    parameters, _ = network(torch.randn(5, 3))
    assert parameters.shape == (5, 4)
    assert torch.equal(parameters[:, 2:], torch.zeros(5, 2))
    parameters[:, 2:].sum().backward()
    assert network.head.log_std is not None
    assert network.head.log_std.grad is not None
    assert network.head.log_std.grad.tolist() == [5.0, 5.0]


def image_space(*shape: int, dtype: type[np.generic] = np.uint8) -> spaces.Box:
    return spaces.Box(0, 255, shape, dtype)


@pytest.mark.parametrize(
    ("space", "channels", "channel_axis"),
    [
        (image_space(84, 84, 3), 3, 2),
        (image_space(4, 84, 84), 4, 0),
        (image_space(10, 10, 16), 16, 2),
        (image_space(16, 10, 10), 16, 0),
        (image_space(210, 160, 3), 3, 2),
        (image_space(3, 210, 160), 3, 0),
        (image_space(7, 7, 7), 7, 2),
        (image_space(84, 84), 1, None),
        (image_space(9, 9, 3, dtype=np.float32), 3, 2),
    ],
)
def test_the_layout_of_an_image_is_found(space: spaces.Box, channels: int, channel_axis: int | None) -> None:
    layout = ImageLayout.of(space)
    assert layout is not None
    assert (layout.channels, layout.channel_axis) == (channels, channel_axis)
    image = torch.arange(math.prod(space.shape)).reshape(1, *space.shape)
    assert layout.channels_first(image).shape == (1, channels, layout.height, layout.width)
    if channel_axis is not None:
        assert torch.equal(layout.channels_first(image)[0, 1], image[0].select(channel_axis, 1))


@pytest.mark.parametrize(
    "space",
    [VECTOR, CHOICE, image_space(4, 4, 3), image_space(84, 84, dtype=np.float32), image_space(128), image_space(2, 3)],
)
def test_what_is_no_image_is_not_taken_for_one(space: gymnasium.Space[object]) -> None:
    assert ImageLayout.of(space) is None
    assert not has_images(space)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_large_images_go_through_the_convolutions_of_the_paper(dtype: type[np.generic], grad: bool) -> None:
    layout = ImageLayout.of(image_space(84, 84, 4, dtype=dtype))
    assert layout is not None
    network = Convolutions(layout)
    image = torch.randint(0, 256, (2, 84, 84, 4), dtype=torch.uint8)
    x = image.permute(0, 3, 1, 2).float()
    if dtype is np.uint8:
        x = x / 255.0
    else:
        image = image.float()
    for layer, stride in zip(network.layers, (4, 2, 1), strict=True):
        assert isinstance(layer, nn.Conv2d)
        x = F.relu(F.conv2d(x, layer.weight, layer.bias, stride))
    with torch.set_grad_enabled(grad):
        features = network(image)
    assert network.size == 64 * 7 * 7
    torch.testing.assert_close(features, x.flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 5, 3), (7, 9, 3), (3, 35, 40), (36, 36, 3), (40, 36)])
def test_images_of_any_size_give_actions_and_values(shape: tuple[int, ...]) -> None:
    network = CNN(Spaces(image_space(*shape), CHOICE))
    parameters, value = network(torch.randint(0, 256, (2, *shape), dtype=torch.uint8))
    assert parameters.shape == (2, 4)
    assert value.shape == (2,)
    (parameters.sum() + value.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_in_bfloat16_bytes_become_what_converted_floats_do() -> None:
    network = CNN(Spaces(image_space(36, 36, 3), CHOICE))
    images = torch.arange(2 * 36 * 36 * 3).remainder(256).to(torch.uint8).reshape(2, 36, 36, 3)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = network(images), network(images.float())
    assert ours[0].dtype is torch.bfloat16
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_device_that_knows_no_autocast_gives_the_shapes_of_images() -> None:
    network = CNN(Spaces(image_space(36, 36, 3), CHOICE)).to("meta")
    actions, values = network(torch.empty(2, 36, 36, 3, dtype=torch.uint8, device="meta"))
    assert (actions.shape, values.shape) == ((2, 4), (2,))


def test_a_dict_joins_images_with_everything_else() -> None:
    space = spaces.Dict(
        {
            "left": image_space(8, 8, 3),
            "right": image_space(3, 36, 36),
            "speed": VECTOR,
            "gear": spaces.Discrete(5),
        }
    )
    network = CNN(Spaces(space, spaces.Box(-1.0, 1.0, (2,))))
    observation = {
        "left": torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8),
        "right": torch.randint(0, 256, (2, 3, 36, 36), dtype=torch.uint8),
        "speed": torch.randn(2, 3),
        "gear": torch.tensor([0, 4]),
    }
    parameters, _ = network(observation)
    assert parameters.shape == (2, 4)
    for key in observation:
        changed = dict(observation)
        changed[key] = torch.zeros_like(observation[key]) + 1
        assert not torch.equal(network(changed)[0], parameters), key


def test_a_cnn_without_an_image_says_what_it_needs() -> None:
    with pytest.raises(NetworkError, match=r"'cnn' needs an image to look at.*use 'mlp' or 'lstm'"):
        CNN(Spaces(VECTOR, CHOICE))
