"""The node of each kind of object that an `ObjectGraph` knows."""

from __future__ import annotations

import copyreg
import functools
import logging
import random
import re
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from enum import Enum, Flag
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from gymnasium import Space

from orchestrator.environments.drawings import DRAWING, drawing_node
from orchestrator.environments.named_code import functions_of, is_data, is_named, is_stateless, parts_of
from orchestrator.environments.object_nodes import (
    KIND,
    NUMPY_GENERATORS,
    REDUCED,
    SCALARS,
    SINGLETONS,
    NotCapturable,
    address,
    attributes_of,
    code_digest,
    has_own_globals,
    hash_is_a_number,
    is_python_object,
    text_of,
    type_name,
)

if TYPE_CHECKING:
    from orchestrator.environments.object_nodes import Graph, Node, Path


def encode(graph: Graph, value: Any, path: Path) -> Node:
    """The node of an object. Raises NotCapturable for one that holds more than its attributes tell."""
    if id(value) in _SINGLETONS:
        return {KIND: "singleton", "name": _SINGLETONS[id(value)]}
    encoder = _BY_TYPE.get(type(value))
    if encoder is None:
        encoder = next((encoder for kind, encoder in _BY_BASE if isinstance(value, kind)), _instance)
    return encoder(graph, value, path)


def class_parts(kind: type) -> dict[str, Any]:
    """What can change of a class that was made at run time, and what its methods hold, by the attributes' names."""
    if issubclass(kind, (Enum, tuple)):
        return {}
    generated = "__dataclass_fields__" in vars(kind)
    parts: dict[str, Any] = {}
    for name, value in vars(kind).items():
        if any(True for _ in functions_of(value)):
            if not (generated and getattr(getattr(value, "__code__", None), "co_filename", "") == "<string>"):
                parts[name] = value
        elif (
            not name.startswith(("__", "_abc_"))
            and is_data(value)
            and (_has_kind(value) or is_python_object(type(value)) or not is_stateless(value))
        ):
            parts[name] = value
    return parts


def is_instance(value: object) -> bool:
    """Whether a value is an object of some class in Python, and of no kind that is known here."""
    return is_python_object(type(value)) and not _has_kind(value)


def _has_kind(value: object) -> bool:
    return type(value) in SCALARS or type(value) in _BY_TYPE or isinstance(value, _BASES)


def _reduced(graph: Graph, value: Any, path: Path) -> Node:
    kind: type = type(value)
    reduce = copyreg.dispatch_table.get(kind)
    # In protocol 4, times have their fold.
    reduced = cast("tuple[Any, ...]", reduce(value) if reduce else value.__reduce_ex__(4))
    return {KIND: "reduced", "name": kind.__name__, "items": graph.items(reduced[1], path)}


def _bytes(graph: Graph, value: bytes | bytearray, path: Path) -> Node:
    return {KIND: type(value).__name__, "value": np.frombuffer(bytes(value), np.uint8)}


def _sequence(graph: Graph, value: Any, path: Path) -> Node:
    node: Node = {KIND: type(value).__name__, "items": graph.items(value, path)}
    return node | {"maxlen": value.maxlen} if isinstance(value, deque) else node


def _set(graph: Graph, value: Any, path: Path) -> Node:
    kind = type(value)
    ordered = list(value)
    again = kind(ordered)
    # Its order depends on hashes, and on what was in it before.
    if (
        not all(map(hash_is_a_number, ordered))
        or list(again) != ordered
        or sys.getsizeof(again) != sys.getsizeof(value)
    ):
        raise NotCapturable(
            f"{text_of(path)} is a {kind.__name__} whose order can't be restored; a dict keeps its order"
        )
    return {KIND: kind.__name__, "items": graph.items(ordered, path)}


def _dict(graph: Graph, value: Any, path: Path) -> Node:
    if sum(1 for key in value if key != key) > 1:
        raise NotCapturable(f"{text_of(path)} has several keys that are NaN, which a saved state can't tell apart")
    node: Node = {
        KIND: type(value).__name__,
        "keys": graph.items(value, (path, ".keys()")),
        "values": [graph.reference(item, (path, f"[{key!r}]")) for key, item in value.items()],
    }
    if isinstance(value, defaultdict):
        node["factory"] = graph.reference(value.default_factory, (path, ".default_factory"))
    return node


def _array(graph: Graph, value: np.ndarray[Any, Any], path: Path) -> Node:
    owner: Any = value
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if owner.base is not None and not isinstance(owner.base, bytes):
        raise NotCapturable(f"{text_of(path)} is an array over the memory of a {type_name(type(owner.base))}")
    if value.dtype.hasobject:
        if value.dtype.names is not None or owner is not value or not value.flags.c_contiguous:
            raise NotCapturable(f"{text_of(path)} is an array of objects that shares memory or has fields")
        return {KIND: "objects", "shape": list(value.shape), "items": graph.items(value.ravel().tolist(), path)}
    if value.dtype.kind == "T":
        raise NotCapturable(f"{text_of(path)} is an array of the type {value.dtype}")
    node: Node = {"writeable": value.flags.writeable}
    if owner is not value:
        return node | {
            KIND: "view",
            "base": graph.reference(owner, (path, ".base")),
            "offset": address(value) - address(owner),
            "shape": list(value.shape),
            "strides": list(value.strides),
            "dtype": np.empty(0, value.dtype),
        }
    if owner.base is None:
        graph.note_memory(address(value), value.nbytes, path)
    # In the order of the memory: sums, say, depend on it.
    axes = sorted(range(value.ndim), key=lambda axis: -value.strides[axis])
    return node | {KIND: "array", "axes": axes, "value": value.transpose(axes).copy()}


def _number(graph: Graph, value: np.generic, path: Path) -> Node:
    if value.dtype.hasobject or (isinstance(value, np.void) and value.base is not None):
        raise NotCapturable(f"{text_of(path)} is a record that is part of an array")
    return {KIND: "number", "value": np.asarray(value)}


def _dtype(graph: Graph, value: Any, path: Path) -> Node:
    if value.hasobject or value.kind == "T":
        return {KIND: "object dtype"} if value.kind == "O" and value.names is None else _instance(graph, value, path)
    return {KIND: "dtype", "value": np.empty(0, value)}


def _tensor(graph: Graph, value: torch.Tensor, path: Path) -> Node:
    if value.requires_grad or value.device.type != "cpu" or value.layout != torch.strided or vars(value):
        raise NotCapturable(f"{text_of(path)} is a tensor that needs gradients, or is not on the CPU, or is sparse")
    return {
        KIND: "tensor",
        "storage": graph.reference(value.untyped_storage(), (path, ".storage")),
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "strides": list(value.stride()),
        "offset": value.storage_offset(),
    }


def _storage(graph: Graph, value: torch.UntypedStorage, path: Path) -> Node:
    graph.note_memory(value.data_ptr(), value.nbytes(), path)
    content = torch.empty(0, dtype=torch.uint8).set_(value)  # pyright: ignore[reportArgumentType]
    return {KIND: "storage", "value": content.numpy().copy()}


def _generator(graph: Graph, value: np.random.Generator, path: Path) -> Node:
    return {KIND: "generator", "bits": graph.reference(value.bit_generator, (path, ".bit_generator"))}


def _random_state(graph: Graph, value: Any, path: Path) -> Node:
    state = value.get_state(legacy=False)
    rest = {"has_gauss": int(state["has_gauss"]), "gauss": float(state["gauss"])} if graph.generators else {}
    return {KIND: "random state", "bits": graph.reference(value._bit_generator, (path, ".bits")), **rest}


def _bits(graph: Graph, value: Any, path: Path) -> Node:
    name = type(value).__name__
    if name not in NUMPY_GENERATORS or type(value) is not getattr(np.random, name):
        raise NotCapturable(f"{text_of(path)} is a random generator of the type {type_name(type(value))}")
    if not graph.generators:
        return {KIND: "bits", "name": name}
    seeds = getattr(value, "seed_seq", None)
    return {
        KIND: "bits",
        "name": name,
        "state": graph.reference(value.state, (path, ".state")),
        # Only `spawn` depends on it.
        "seeds": graph.reference(seeds, (path, ".seed_seq")) if type(seeds) is np.random.SeedSequence else None,
    }


def _seeds(graph: Graph, value: Any, path: Path) -> Node:
    entropy = value.entropy
    return {
        KIND: "seeds",
        "items": [
            graph.reference(list(map(int, entropy)) if np.ndim(entropy) else entropy, (path, ".entropy")),
            graph.reference(tuple(map(int, value.spawn_key)), (path, ".spawn_key")),
            int(value.pool_size),
            int(value.n_children_spawned),
        ],
    }


def _random(graph: Graph, value: random.Random, path: Path) -> Node:
    if not graph.generators:
        return {KIND: "random"}
    return {KIND: "random", "state": graph.reference(value.getstate(), (path, ".state"))}


def _torch_generator(graph: Graph, value: torch.Generator, path: Path) -> Node:
    if value.device.type != "cpu" or value is torch.default_generator:
        raise NotCapturable(f"{text_of(path)} is a torch generator of the device {value.device}, or torch's own")
    return {KIND: "torch generator", "state": value.get_state().numpy() if graph.generators else None}


def _member_parts(member: Enum) -> dict[str, Any]:
    """Its attributes without those of every member; of these, its value where that may change."""
    parts = {name: one for name, one in vars(member).items() if not (name.startswith("_") and name.endswith("_"))}
    return parts if type(member.value) in SCALARS else {"_value_": member.value, **parts}


def _enum(graph: Graph, value: Enum, path: Path) -> Node:
    return {
        KIND: "member",
        "class": _class_of(graph, type(value), (path, ".__class__")),
        "name": None if isinstance(value, Flag) else value.name,
        "value": graph.reference(value.value, (path, ".value")) if isinstance(value, Flag) else None,
        **graph.named(_member_parts(value), path),
    }


def _class(graph: Graph, value: type, path: Path) -> Node:
    if is_named(value):
        return {KIND: "class", "name": type_name(value)}
    slots = vars(value).get("__slots__")
    return {
        KIND: "own class",
        "name": type_name(value),
        "slots": [slots] if isinstance(slots, str) else slots if slots is None else list(slots),
        "bases": [_class_of(graph, base, (path, f".__bases__[{place}]")) for place, base in enumerate(value.__bases__)],
        "plain": not issubclass(value, (Enum, tuple)) and "__dataclass_fields__" not in vars(value),
        "members": list(getattr(value, "__members__", ())),
        "metaclass": _class_of(graph, type(value), (path, ".__class__")),
        **graph.named(class_parts(value), path),
    }


def _class_of(graph: Graph, kind: type, path: Path) -> Any:
    """What stands for a class: its name, or a reference where others may have it too."""
    return type_name(kind) if is_named(kind) else graph.reference(kind, path)


def _wrapper(graph: Graph, value: Any, path: Path) -> Node:
    return {KIND: type(value).__name__, "items": graph.items(parts_of(value), path)}


def _logger(graph: Graph, value: logging.Logger, path: Path) -> Node:
    if logging.getLogger(value.name) is not value:
        return _instance(graph, value, path)
    return {KIND: "logger", "name": value.name}


def _ufunc(graph: Graph, value: np.ufunc, path: Path) -> Node:
    if getattr(np, value.__name__, None) is not value:
        raise NotCapturable(f"{text_of(path)} is a numpy function that numpy does not have")
    return {KIND: "ufunc", "name": value.__name__}


def _builtin(graph: Graph, value: Any, path: Path) -> Node:
    if value.__self__ is None or isinstance(value.__self__, types.ModuleType):
        return {KIND: "builtin", "name": f"{value.__module__}:{value.__qualname__}"}
    return _method(graph, value, path)


def _method(graph: Graph, value: Any, path: Path) -> Node:
    own, name = value.__self__, value.__name__
    found = getattr(type(own), name, None) if not isinstance(own, type) else None
    if found is None or (isinstance(value, types.MethodType) and found is not value.__func__):
        raise NotCapturable(f"{text_of(path)} is the method {name!r}, which its object's class does not have")
    return {KIND: "method", "self": graph.reference(own, (path, ".__self__")), "name": name}


def _function(graph: Graph, value: types.FunctionType, path: Path) -> Node:
    if has_own_globals(value):
        raise NotCapturable(f"{text_of(path)} is a function made by exec, with global variables of no module")
    return {
        KIND: "function",
        "name": f"{value.__module__}:{value.__code__.co_qualname}",
        "code": code_digest(value.__code__),
        "cells": graph.items(value.__closure__ or (), (path, ".__closure__")),
        "defaults": graph.reference(value.__defaults__, (path, ".__defaults__")),
        "keyword_defaults": graph.reference(value.__kwdefaults__, (path, ".__kwdefaults__")),
        **graph.named(vars(value), path),
    }


def _cell(graph: Graph, value: types.CellType, path: Path) -> Node:
    try:
        return {KIND: "cell", "items": [graph.reference(value.cell_contents, (path, ".contents"))]}
    except ValueError:
        return {KIND: "cell", "items": []}


def _partial(graph: Graph, value: Any, path: Path) -> Node:
    if vars(value):
        raise NotCapturable(f"{text_of(path)} is a partial with attributes")
    parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
    return {KIND: "partial", **{name: graph.reference(part, (path, f".{name}")) for name, part in parts.items()}}


def _namespace(graph: Graph, value: types.SimpleNamespace, path: Path) -> Node:
    return {KIND: "namespace", **graph.named(vars(value), path)}


def _instance(graph: Graph, value: Any, path: Path) -> Node:
    kind = cast("type[Any]", type(value))
    if issubclass(kind, tuple) and hasattr(kind, "_fields") and not hasattr(value, "__dict__"):
        return {
            KIND: "named tuple",
            "class": _class_of(graph, kind, (path, ".__class__")),
            "items": graph.items(value, path),
        }
    if type_name(kind) in DRAWING:
        return drawing_node(value)
    if not is_python_object(kind):
        raise NotCapturable(
            f"{text_of(path)} is of the type {type_name(kind)}, which keeps what it knows outside of its attributes"
        )
    of = _class_of(graph, kind, (path, ".__class__"))
    attributes = attributes_of(value)
    graph.note_attributes(value, path)
    if isinstance(value, Space) and not graph.generators:
        attributes["_np_random"] = None  # which it may get only later
    return {KIND: "instance", "class": of, **graph.named(attributes, path)}


_Encode: TypeAlias = "Callable[[Graph, Any, Path], Node]"
_BY_TYPE: Mapping[type, _Encode] = {
    int: lambda _graph, value, _path: {KIND: "integer", "hexadecimal": hex(value)},
    np.ndarray: _array,
    torch.Tensor: _tensor,
    torch.UntypedStorage: _storage,
    torch.Generator: _torch_generator,
    np.random.Generator: _generator,
    np.random.RandomState: _random_state,
    np.random.SeedSequence: _seeds,
    np.ufunc: _ufunc,
    random.Random: _random,
    types.BuiltinFunctionType: _builtin,
    types.MethodType: _method,
    types.FunctionType: _function,
    types.CellType: _cell,
    types.ModuleType: lambda _graph, value, _path: {KIND: "module", "name": value.__name__},
    types.SimpleNamespace: _namespace,
    functools.partial: _partial,
    **dict.fromkeys((property, staticmethod, classmethod, functools.cached_property), _wrapper),
    **dict.fromkeys((bytes, bytearray), _bytes),
    **dict.fromkeys((list, tuple, deque), _sequence),
    **dict.fromkeys((set, frozenset), _set),
    **dict.fromkeys((dict, OrderedDict, defaultdict, Counter), _dict),
    **{kind if isinstance(kind, type) else re.Pattern: _reduced for kind in REDUCED.values()},
}
_BY_BASE: tuple[tuple[type, _Encode], ...] = (
    (Enum, _enum),
    (np.generic, _number),
    (np.dtype, _dtype),
    (np.random.BitGenerator, _bits),
    (logging.Logger, _logger),
    (type, _class),
)
_SINGLETONS = {id(value): name for name, value in SINGLETONS.items()}
_BASES = tuple(kind for kind, _ in _BY_BASE)
