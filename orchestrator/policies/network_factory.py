"""Networks by name: the built-in ones and those of one's own, and the check that a network fits the spaces."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from gymnasium import spaces as gymnasium_spaces
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from orchestrator.config.own_code import OwnCodeError, import_function, place_of
from orchestrator.config.plugins import code_named
from orchestrator.config.settings import NETWORKS
from orchestrator.policies.by_type import networks_by_type
from orchestrator.policies.cnn import CNN, has_images
from orchestrator.policies.lstm import LSTM
from orchestrator.policies.mlp import MLP
from orchestrator.policies.network import NetworkError, Observation, SeparateNetwork, Spaces, evaluating
from orchestrator.policies.tokens import TokenEncoder, Tokens
from state.module_tensors import named_tensors, tensor_places
from state.policy_snapshot import PolicyLayout
from state.user_code import described, is_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    import gymnasium

    from orchestrator.config.settings import PolicyConfig

_BATCH, _TIME = 2, 3


def make_network(config: PolicyConfig, spaces: Spaces) -> nn.Module:
    """The network called `config.network`, with new weights.

    Raises NetworkError where the name is unknown, cannot be imported, or what it names does not return a module.
    """
    if config.by_type:
        return networks_by_type(spaces, partial(_network_of_type, config))
    name = config.network
    if name == "auto":
        name = "cnn" if has_images(spaces.observation) else "mlp"
    match name:
        case "mlp":
            return MLP(spaces, config.hidden_sizes, config.activation)
        case "cnn":
            return CNN(spaces)
        case "lstm":
            return LSTM(spaces, config.hidden_sizes, config.activation, config.lstm_size)
        case "tokens":
            return Tokens(spaces, config.hidden_sizes, config.activation, config.latents)
        case "tokens_lstm":
            return LSTM(spaces, (), config.activation, config.lstm_size, TokenEncoder(spaces, config.latents))
        case _:
            return _own_network(name, spaces)


def _network_of_type(config: PolicyConfig, policy: str, spaces: Spaces) -> nn.Module:
    own: dict[str, Any] = {"by_type": ()}
    for one in config.by_type:
        if one.type == policy:
            given = {name: getattr(one, name) for name in ("network", "hidden_sizes", "activation", "lstm_size")}
            own |= {name: value for name, value in given.items() if value is not None}
    config = replace(config, **own)
    network = make_network(config, spaces)
    check_network(network, spaces, f"{config.network} of {policy}")
    return network


def check_network(network: nn.Module, spaces: Spaces, name: str) -> None:
    """Run `network`, called `name`, once on observations of zeros; lazy modules get their parameters by that.

    Raises NetworkError naming what came and what is needed where it fails or does not fit the spaces, and naming the
    parameters and buffers that cannot be learned, published or saved.
    """
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NetworkError(
                f"{path or 'the whole'} of the network {name!r} is a module of torch.jit, which keeps its tensors to"
                " itself, where they cannot be published; expected modules in Python: assign the one that was given to"
                " torch.jit.script or torch.jit.trace"
            )
    _check_layout(network, name)
    _check_hidden(network, name)
    learned = [(path, parameter) for path, parameter in network.named_parameters() if parameter.requires_grad]
    if not learned:
        raise NetworkError(f"the network {name!r} has no parameters to learn: assign its layers to attributes")
    for path, parameter in learned:
        if parameter.dtype != torch.float32:
            raise NetworkError(f"the parameter {path} of the network {name!r} is {parameter.dtype}, expected float32")
    state_size: object = getattr(network, "state_size", None)
    if state_size is not None and not (isinstance(state_size, int) and state_size > 0):
        raise NetworkError(f"the state_size of the network {name!r} is {state_size!r}, expected an int of at least 1")
    # A layer with running statistics must not take the zeros for data.
    with evaluating(network), torch.no_grad(), _buffers_kept(network):
        if isinstance(state_size, int):
            _check_recurrent(network, spaces, name, state_size)
        else:
            _check_feed_forward(network, spaces, name)
    _check_tensors(network, name)


def outputs_without_gradient(network: nn.Module, spaces: Spaces) -> list[str]:
    """Which of "action parameters" and "value" have no gradient, whatever is frozen, in training mode.

    For a network that has passed `check_network`. Its parameters and buffers stay as they are.
    """
    tensors: dict[str, Tensor] = {
        path: parameter.detach().clone().requires_grad_() if parameter.is_floating_point() else parameter
        for path, parameter in network.named_parameters()
    }
    tensors |= {path: buffer.detach().clone() for path, buffer in network.named_buffers()}
    leading = (_BATCH, _TIME) if hasattr(network, "state_size") and network.state_size else (_BATCH,)
    arguments: list[Any] = [zero_observations(spaces.observation, leading)]
    if len(leading) > 1:
        arguments += [torch.zeros(_BATCH, network.state_size), torch.zeros(leading, dtype=torch.bool)]  # type: ignore[arg-type]
    with torch.enable_grad():
        outputs = torch.func.functional_call(network, tensors, tuple(arguments))
    roles = ("action parameters", "value")
    return [role for role, output in zip(roles, outputs, strict=False) if not output.requires_grad]


def _check_layout(network: nn.Module, name: str) -> None:
    for path, tensor in named_tensors(network).items():
        if is_lazy(tensor):
            continue
        kind, cure = "", ""
        if tensor.layout is not torch.strided:
            kind = f"sparse ({str(tensor.layout).removeprefix('torch.')})"
            cure = "register its to_dense(), and make that sparse in forward if need be"
        elif tensor.is_quantized:
            kind, cure = "quantized", "register its dequantize()"
        elif tensor.is_meta:
            kind, cure = "on the device meta, without values", "make it on the CPU"
        if kind:
            raise NetworkError(
                f"{path} of the network {name!r} is {kind}, which can be neither published nor saved; expected a dense"
                f" tensor: {cure}"
            )


def _check_hidden(network: nn.Module, name: str) -> None:
    """Raises NetworkError for modules and parameters in plain lists and the like, which torch does not see."""
    known = {id(parameter) for parameter in network.parameters()}
    for path, module in network.named_modules():
        for key, value in vars(module).items():
            if key in _OF_TORCH:
                continue
            for hidden in _inside(value):
                parameters = hidden.parameters() if isinstance(hidden, nn.Module) else [hidden]
                if any(parameter.requires_grad and id(parameter) not in known for parameter in parameters):
                    attribute = f"{path}.{key}".removeprefix(".")
                    kind = "Module" if isinstance(hidden, nn.Module) else "Parameter"
                    raise NetworkError(
                        f"{attribute} of the network {name!r} is a {type(value).__name__} with a"
                        f" {type(hidden).__name__} in it, where torch does not see it, so that it would be neither"
                        f" trained, published nor saved; expected an nn.{kind}List or nn.{kind}Dict: make it"
                        f" nn.{kind}{'Dict' if isinstance(value, dict) else 'List'}(...); what is not to be trained is"
                        " frozen with requires_grad_(False)"
                    )


_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has, the tables of its modules and parameters among them."""


def _inside(value: object, depth: int = 3) -> Generator[nn.Module | nn.Parameter]:
    """The modules and parameters in plain containers."""
    if isinstance(value, dict):
        value = list(cast("dict[object, object]", value).values())
    if isinstance(value, (list, tuple, set, frozenset)):
        for item in cast("Iterable[object]", value):
            if isinstance(item, (nn.Module, nn.Parameter)):
                yield item
            elif depth:
                yield from _inside(item, depth - 1)


def _check_tensors(network: nn.Module, name: str) -> None:
    tensors = named_tensors(network)
    lazy = [path for path, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise NetworkError(
            f"{', '.join(lazy)} of the network {name!r} got no shape when it was tried out: call the lazy module in"
            " forward, or give it its sizes"
        )
    try:
        PolicyLayout.of(network)
    except TypeError as error:
        raise NetworkError(f"the network {name!r}: {error}") from error
    attributes = {
        f"{path}.{key}".removeprefix("."): value
        for path, module in network.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta  # others share nothing
    }
    spans = sorted((*_span(tensor), path) for path, tensor in {**attributes, **tensors}.items() if tensor.numel())
    for (_, end, path), (begin, _, other) in pairwise(spans):
        if begin < end and (path in tensors or other in tensors):
            raise NetworkError(
                f"{path} and {other} of the network {name!r} are different tensors in the same memory, which would"
                " part as soon as they are published: assign one nn.Parameter (or buffer) to both attributes, or clone"
                " one of them"
            )


def _span(tensor: Tensor) -> tuple[int, int]:
    """Where its memory begins and ends."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + extent * tensor.element_size()


@contextmanager
def _buffers_kept(network: nn.Module) -> Generator[None]:
    """Undo what a network makes of its buffers meanwhile, except for giving a lazy one its shape."""
    kept = [
        (table, key, table[key], table[key].clone())
        for table, key in tensor_places(network).values()
        if isinstance(table[key], Tensor) and not isinstance(table[key], nn.Parameter) and not is_lazy(table[key])
    ]
    try:
        yield
    finally:
        for table, key, buffer, value in kept:
            table[key] = buffer
            buffer.data = value


def _check_feed_forward(network: nn.Module, spaces: Spaces, name: str) -> None:
    observation = zero_observations(spaces.observation, (_BATCH,))
    want_parameters = ("action parameters", (_BATCH, spaces.action_parameters))
    want_value = ("value", (_BATCH,))
    given = _call(network, name, "forward", observation)
    _compare(given, name, "forward", observation, want_parameters, want_value)
    if isinstance(network, SeparateNetwork):
        given = _call(network.action_parameters, name, "action_parameters", observation)
        _compare((given,), name, "action_parameters", observation, want_parameters)
        given = _call(network.value, name, "value", observation)
        _compare((given,), name, "value", observation, want_value)


def _check_recurrent(network: nn.Module, spaces: Spaces, name: str, state_size: int) -> None:
    observation = zero_observations(spaces.observation, (_BATCH, _TIME))
    state = torch.zeros(_BATCH, state_size)
    episode_start = torch.zeros(_BATCH, _TIME, dtype=torch.bool)
    _compare(
        _call(network, name, "forward", observation, state, episode_start),
        name,
        "forward",
        observation,
        ("action parameters", (_BATCH, _TIME, spaces.action_parameters)),
        ("value", (_BATCH, _TIME)),
        ("state", (_BATCH, state_size)),
    )


def _call(function: Callable[..., object], name: str, method: str, *arguments: Any) -> object:
    try:
        return function(*arguments)
    except BaseException as error:  # whatever a user's network raises is what they must know
        if is_signal(error):
            raise
        raise NetworkError(
            f"{method} of the network {name!r} failed on observations of {_describe(arguments[0])}"
            f" at {place_of(error)}: {described(error)}"
        ) from error


def _compare(
    given: object, name: str, method: str, observation: Observation, *wanted: tuple[str, tuple[int, ...]]
) -> None:
    tensors = cast("tuple[object, ...]", given) if isinstance(given, (tuple, list)) else (given,)
    fits = len(tensors) == len(wanted) and all(
        isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and (tuple(tensor.shape) == shape or (role == "value" and tuple(tensor.shape) == (*shape, 1)))
        for tensor, (role, shape) in zip(tensors, wanted, strict=False)
    )
    if not fits:
        expected = ", ".join(f"{role} {list(shape)}" for role, shape in wanted)
        raise NetworkError(
            f"{method} of the network {name!r} returned {', '.join(map(_describe, tensors))} for observations of"
            f" {_describe(observation)}; expected {expected}, of floats"
        )


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_describe(part)}" for key, part in cast("dict[str, object]", value).items())
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def zero_observations(space: gymnasium.Space[Any], leading: tuple[int, ...]) -> Observation:
    """Observations in `space` that are as near to 0 as it allows, with `leading` dimensions."""
    if isinstance(space, gymnasium_spaces.Dict):
        return {key: cast("Tensor", zero_observations(part, leading)) for key, part in space.items()}
    lowest: Any = 0
    if isinstance(space, gymnasium_spaces.Box):
        lowest = np.clip(np.zeros(space.shape), space.low, space.high)
    elif isinstance(space, (gymnasium_spaces.Discrete, gymnasium_spaces.MultiDiscrete)):
        lowest = space.start
    dtype = np.float32 if space.dtype == np.float64 else space.dtype
    one = np.broadcast_to(np.asarray(lowest, dtype), (*leading, *(space.shape or ())))
    return torch.from_numpy(one.copy())


def _own_network(name: str, spaces: Spaces) -> nn.Module:
    try:
        function = code_named(name, "networks", NETWORKS)
    except OwnCodeError as error:
        raise NetworkError(str(error)) from error
    try:
        network = import_function(function)(spaces)
    except OwnCodeError as error:
        raise NetworkError(f"the network {name!r} cannot be imported: {error}") from error
    except NetworkError:
        raise
    except BaseException as error:  # whatever a user's function raises is what they must know
        if is_signal(error):
            raise
        raise NetworkError(
            f"{name} failed at {place_of(error)}: {described(error)}; it is called with the Spaces and returns the"
            " network"
        ) from error
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{name} returned {type(network).__name__}, expected a torch.nn.Module")
    return network
