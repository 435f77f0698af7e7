"""The object of each kind of node: first made, whole where it can't change and else empty, then filled."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
import torch

from orchestrator.environments.cached_methods import is_remembered
from orchestrator.environments.drawings import drawing_there, fill_drawing
from orchestrator.environments.named_code import parts_of
from orchestrator.environments.object_kinds import class_parts
from orchestrator.environments.object_nodes import (
    AT,
    KIND,
    NUMPY_GENERATORS,
    REDUCED,
    SINGLETONS,
    CannotRestore,
    Node,
    slots_of,
    type_name,
)

if TYPE_CHECKING:
    from orchestrator.environments.reachable_code import Known


class Restoration(Protocol):
    """What is being restored: see `object_restore`."""

    nodes: Sequence[Node]
    known: Known
    there: dict[int, Any]
    """Objects that are there already, by the index of the node that they are for."""
    elsewhere: Callable[[Node], object]

    def value(self, saved: Any) -> Any: ...

    def items(self, node: Node) -> list[Any]: ...

    def named(self, node: Node) -> dict[str, Any]: ...


def _instance(restoration: Restoration, node: Node, index: int) -> Any:
    kind = _class(restoration, node["class"])
    there = restoration.there.get(index)
    if type(there) is kind:
        return there
    if hasattr(kind, "__del__"):
        raise CannotRestore(f"a new object of the class {node['class']!r} would be needed, which has a finalizer")
    return object.__new__(kind)


def _own_class(restoration: Restoration, node: Node, index: int) -> type:
    if index in restoration.there:
        return restoration.there[index]
    bases = tuple(_class(restoration, base) for base in node["bases"])
    runs_code = any("__init_subclass__" in vars(kind) for base in bases for kind in base.__mro__[:-1])
    if node["metaclass"] != type_name(type) or runs_code or not node["plain"]:
        raise CannotRestore(f"a new class {node['name']!r} would be needed, and making one runs code")
    module, _, name = node["name"].partition(":")
    namespace: dict[str, Any] = {"__module__": module, "__qualname__": name}
    if node["slots"] is not None:
        namespace["__slots__"] = tuple(node["slots"])
    return type(name.rpartition(".")[2], bases, namespace)


def _wrapper(restoration: Restoration, node: Node, index: int) -> Any:
    items = restoration.items(node)
    there = restoration.there.get(index)
    if there is not None and list(map(id, parts_of(there))) == list(map(id, items)):
        return there
    return _WRAPPERS[node[KIND]](*items)


def _class(restoration: Restoration, saved: Any) -> type:
    if isinstance(saved, dict):
        return restoration.value(saved)
    name = cast("str", saved)
    if name not in restoration.known.classes:
        raise CannotRestore(f"the saved state has the class {name!r}, which this environment does not have")
    return restoration.known.classes[name]


def _named_tuple(restoration: Restoration, node: Node, index: int) -> Any:
    kind: Any = _class(restoration, node["class"])
    return tuple.__new__(kind, restoration.items(node))


def _array(restoration: Restoration, node: Node, index: int) -> np.ndarray[Any, Any]:
    stored = node["value"]
    array = stored.transpose(np.argsort(node["axes"])).copy(order="K") if node["axes"] else stored.copy()
    array.flags.writeable = node["writeable"]
    return array


def _view(restoration: Restoration, node: Node, index: int) -> np.ndarray[Any, Any]:
    memory = restoration.value(node["base"])
    memory = memory.ravel(order="K").view(np.uint8)
    view = np.ndarray(
        tuple(node["shape"]),
        node["dtype"].dtype,
        buffer=memory,
        offset=node["offset"],
        strides=tuple(node["strides"]),
    )
    view.flags.writeable = view.flags.writeable and node["writeable"]
    return view


def _objects_array(restoration: Restoration, node: Node, index: int) -> np.ndarray[Any, Any]:
    return np.empty(tuple(node["shape"]), object)


def _storage(restoration: Restoration, node: Node, index: int) -> torch.UntypedStorage:
    return torch.from_numpy(node["value"].copy()).untyped_storage()


def _tensor(restoration: Restoration, node: Node, index: int) -> torch.Tensor:
    dtype = getattr(torch, node["dtype"])
    return torch.empty(0, dtype=dtype).set_(
        restoration.value(node["storage"]), node["offset"], tuple(node["shape"]), tuple(node["strides"])
    )


def _generator(restoration: Restoration, node: Node, index: int) -> np.random.Generator:
    return np.random.Generator(restoration.value(node["bits"]))


def _random_state(restoration: Restoration, node: Node, index: int) -> np.random.RandomState:
    generator = np.random.RandomState(restoration.value(node["bits"]))
    state = generator.get_state(legacy=False)
    generator.set_state(state | {"has_gauss": node["has_gauss"], "gauss": node["gauss"]})
    return generator


def _bits(restoration: Restoration, node: Node, index: int) -> Any:
    if node["name"] not in NUMPY_GENERATORS:
        raise CannotRestore(f"the saved state has a random generator {node['name']!r}")
    bits = getattr(np.random, node["name"])(None if node["seeds"] is None else restoration.value(node["seeds"]))
    # Plain data, and needed now.
    bits.state = _whole(restoration, node["state"])
    return bits


def _seeds(restoration: Restoration, node: Node, index: int) -> np.random.SeedSequence:
    entropy, key, size, children = (_whole(restoration, item) for item in node["items"])
    return np.random.SeedSequence(entropy, spawn_key=key, pool_size=size, n_children_spawned=children)


def _random(restoration: Restoration, node: Node, index: int) -> random.Random:
    generator = random.Random()
    generator.setstate(_whole(restoration, node["state"]))
    return generator


def _torch_generator(restoration: Restoration, node: Node, index: int) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(torch.from_numpy(node["state"].copy()))
    return generator


def _whole(restoration: Restoration, saved: Any) -> Any:
    """A list, tuple, dict or array of plain data, with what is in it."""
    if not isinstance(saved, dict):
        return saved
    node = restoration.nodes[cast("int", saved[AT])]
    match node[KIND]:
        case "list" | "tuple":
            items = [_whole(restoration, item) for item in node["items"]]
            return tuple(items) if node[KIND] == "tuple" else items
        case "dict":
            return dict(zip(node["keys"], (_whole(restoration, item) for item in node["values"]), strict=True))
        case _:
            return restoration.value(saved)


def _member(restoration: Restoration, node: Node, index: int) -> Any:
    kind = _class(restoration, node["class"])
    if not issubclass(kind, Enum):
        raise CannotRestore(f"{node['class']!r} is no enumeration any more")
    if node["name"] is None:
        return kind(_whole(restoration, node["value"]))
    if node["name"] not in kind.__members__:
        raise CannotRestore(f"the enumeration {node['class']!r} has no member {node['name']!r} any more")
    return kind.__members__[node["name"]]


def _module(restoration: Restoration, node: Node, index: int) -> types.ModuleType:
    return _of(restoration.known.modules, node["name"], "module")


def _builtin(restoration: Restoration, node: Node, index: int) -> Any:
    return _of(restoration.known.builtins, node["name"], "function")


def _of(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise CannotRestore(f"the saved state has the {what} {name!r}, which this environment does not have")
    return known[name]


def _ufunc(restoration: Restoration, node: Node, index: int) -> np.ufunc:
    found = getattr(np, node["name"], None)
    if not isinstance(found, np.ufunc):
        raise CannotRestore(f"numpy has no function {node['name']!r}")
    return found


def _method(restoration: Restoration, node: Node, index: int) -> Any:
    own, name = restoration.value(node["self"]), node["name"]
    function = getattr(type(own), name, None)
    if isinstance(function, types.FunctionType):
        return types.MethodType(function, own)
    if isinstance(own, _WITH_METHODS):
        return getattr(own, name)
    raise CannotRestore(f"an object of the class {type_name(type(own))!r} has no method {name!r} any more")


def _function(restoration: Restoration, node: Node, index: int) -> types.FunctionType:
    key = (node["name"], node["code"])
    if key not in restoration.known.code:
        raise CannotRestore(f"the saved state has the function {node['name']!r}, which has changed or is not there")
    cells = tuple(restoration.items({"items": node["cells"]}))
    there = restoration.there.get(index)
    if there is None and "<locals>" not in node["name"]:
        there = restoration.known.functions.get(key)
    # Its cells are those of the one that is there, where that has the same place in everything.
    if there is not None and list(map(id, there.__closure__ or ())) == list(map(id, cells)):
        return there
    code, variables = restoration.known.code[key]
    return types.FunctionType(code, variables, code.co_name, None, cells or None)


def _cell(restoration: Restoration, node: Node, index: int) -> types.CellType:
    return restoration.there[index] if index in restoration.there else types.CellType()


def _partial(restoration: Restoration, node: Node, index: int) -> Any:
    function, arguments = restoration.value(node["func"]), restoration.value(node["args"])
    return functools.partial(function, *arguments, **_whole_keywords(restoration, node["keywords"]))


def _whole_keywords(restoration: Restoration, saved: Any) -> dict[str, Any]:
    node = restoration.nodes[saved[AT]]
    return dict(zip(node["keys"], map(restoration.value, node["values"]), strict=True))


# Filling them.


def _fill_class(restoration: Restoration, value: type, node: Node) -> None:
    values = restoration.named(node)
    for name in class_parts(value).keys() - values:
        delattr(value, name)
    for name, item in values.items():
        if vars(value).get(name, _NOTHING) is not item:
            setattr(value, name, item)


def _fill_instance(restoration: Restoration, value: Any, node: Node) -> None:
    # What is remembered can't be told before it is filled itself.
    values = {name: part for name, part in restoration.named(node).items() if not is_remembered(name)}
    for name, descriptor in slots_of(cast("type[Any]", type(value))).items():
        if name in values:
            descriptor.__set__(value, values.pop(name))
        else:
            with contextlib.suppress(AttributeError):
                descriptor.__delete__(value)
    attributes = getattr(value, "__dict__", None)
    if attributes is not None:  # past setattr: wrappers and frozen dataclasses define their own
        attributes.clear()
        attributes.update(values)


def _fill_sequence(restoration: Restoration, value: Any, node: Node) -> None:
    value.extend(restoration.items(node))


def _fill_set(restoration: Restoration, value: set[Any], node: Node) -> None:
    value.update(restoration.items(node))


def _fill_dict(restoration: Restoration, value: dict[Any, Any], node: Node) -> None:
    for key, item in zip(node["keys"], node["values"], strict=True):
        value[restoration.value(key)] = restoration.value(item)


def _fill_objects(restoration: Restoration, value: np.ndarray[Any, Any], node: Node) -> None:
    flat = value.reshape(-1)
    for place, item in enumerate(restoration.items(node)):
        flat[place] = item


def _fill_cell(restoration: Restoration, value: types.CellType, node: Node) -> None:
    if node["items"]:
        value.cell_contents = restoration.value(node["items"][0])
    else:
        del value.cell_contents


def _fill_function(restoration: Restoration, value: types.FunctionType, node: Node) -> None:
    value.__defaults__ = restoration.value(node["defaults"])
    value.__kwdefaults__ = restoration.value(node["keyword_defaults"])
    if "names" in node:  # checkpoints of earlier releases have not
        vars(value).clear()
        vars(value).update(restoration.named(node))


def _fill_member(restoration: Restoration, value: Enum, node: Node) -> None:
    if node.get("names"):
        vars(value).update(restoration.named(node))


_WITH_METHODS = (
    *(list, dict, set, deque, bytearray, np.ndarray),
    *(np.random.Generator, np.random.RandomState, random.Random),
)
_WRAPPERS: Mapping[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (property, staticmethod, classmethod, functools.cached_property)
}
_NOTHING = object()
_Make: TypeAlias = "Callable[[Restoration, Node, int], Any]"
_Fill: TypeAlias = "Callable[[Restoration, Any, Node], None]"
HASHING = ("set", "dict", "OrderedDict", "Counter", "defaultdict")
MAKE: Mapping[str, _Make] = {
    "instance": _instance,
    "drawing": drawing_there,
    "namespace": lambda _restoration, _node, _index: types.SimpleNamespace(),
    "elsewhere": lambda restoration, node, _index: restoration.elsewhere(node),
    "integer": lambda _restoration, node, _index: int(node["hexadecimal"], 16),
    "number": lambda _restoration, node, _index: node["value"][()],
    "bytes": lambda _restoration, node, _index: node["value"].tobytes(),
    "bytearray": lambda _restoration, node, _index: bytearray(node["value"].tobytes()),
    "reduced": lambda restoration, node, _index: REDUCED[node["name"]](*restoration.items(node)),
    "list": lambda _restoration, _node, _index: list[Any](),
    "tuple": lambda restoration, node, _index: tuple(restoration.items(node)),
    "named tuple": _named_tuple,
    "deque": lambda _restoration, node, _index: deque[Any](maxlen=node["maxlen"]),
    "set": lambda _restoration, _node, _index: set[Any](),
    "frozenset": lambda restoration, node, _index: frozenset(restoration.items(node)),
    "dict": lambda _restoration, _node, _index: dict[Any, Any](),
    "OrderedDict": lambda _restoration, _node, _index: OrderedDict[Any, Any](),
    "Counter": lambda _restoration, _node, _index: Counter[Any](),
    "defaultdict": lambda restoration, node, _index: defaultdict[Any, Any](restoration.value(node["factory"])),
    "array": _array,
    "view": _view,
    "objects": _objects_array,
    "dtype": lambda _restoration, node, _index: node["value"].dtype,
    "object dtype": lambda _restoration, _node, _index: np.dtype(object),
    "storage": _storage,
    "tensor": _tensor,
    "generator": _generator,
    "random state": _random_state,
    "bits": _bits,
    "seeds": _seeds,
    "random": _random,
    "torch generator": _torch_generator,
    "member": _member,
    "class": lambda restoration, node, _index: _class(restoration, node["name"]),
    "own class": _own_class,
    **dict.fromkeys(_WRAPPERS, _wrapper),
    "module": _module,
    "builtin": _builtin,
    "ufunc": _ufunc,
    "logger": lambda _restoration, node, _index: logging.getLogger(node["name"]),
    "method": _method,
    "function": _function,
    "cell": _cell,
    "partial": _partial,
    "singleton": lambda _restoration, node, _index: SINGLETONS[node["name"]],
}
FILL: Mapping[str, _Fill] = {
    "own class": _fill_class,
    "instance": _fill_instance,
    "drawing": fill_drawing,
    "namespace": _fill_instance,
    "list": _fill_sequence,
    "deque": _fill_sequence,
    "set": _fill_set,
    **dict.fromkeys(("dict", "OrderedDict", "Counter", "defaultdict"), _fill_dict),
    "objects": _fill_objects,
    "cell": _fill_cell,
    "function": _fill_function,
    "member": _fill_member,
}
