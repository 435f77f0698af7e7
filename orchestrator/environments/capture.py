"""The state of environments as plain data: numbers, strings, None, numpy arrays, and lists and dicts of those.

An environment is its attributes, wrapper by wrapper, and what of its classes and modules has changed since it was made.
What holds more than that (a simulator's handle, an iterator) makes the whole environment one that can't be captured: a
half of a state would be worse than none. No code is stored, so that reading a checkpoint runs none.
"""

from __future__ import annotations

import platform
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.environments.named_code import is_held, is_stateless
from orchestrator.environments.object_graph import ObjectGraph
from orchestrator.environments.object_kinds import is_instance
from orchestrator.environments.object_nodes import (
    KIND,
    CannotRestore,
    Node,
    NotCapturable,
    attributes_of,
    type_name,
)
from orchestrator.environments.object_restore import Known, Restoration
from orchestrator.environments.reachable_code import ReachableCode

__all__ = ["CannotRestore", "EnvironmentState", "NotCapturable"]

_COMPARED = 2
"""Copies that are looked at to tell what is the same however often an environment is made."""
_CONSTANT_NODES = 1000
"""Objects in an attribute beyond which it is not taken for a constant: looking at them takes time."""


class EnvironmentState:
    """Captures and restores `environments`, which share what they share; to be made when they have just been made.

    What is the same whenever they are made, and has not changed since, is taken for a constant: a state is not restored
    into environments with other constants or other code, since it would write the old over the new.
    """

    def __init__(self, environments: Sequence[object]) -> None:
        self._environments = tuple(environments)
        self._classes: dict[type, None] = {}
        self._functions: dict[types.CodeType, types.FunctionType] = {}
        self._called: dict[int, Any] = {}
        graph = ObjectGraph(opaque_allowed=True)
        for environment in self._environments[:_COMPARED]:
            graph.add(environment, "")
        self._note_code(graph)
        surroundings = self._surroundings()
        self._made = self._constants()
        self._variables = {name: graph.digest() for name, graph in surroundings.items()}
        self._places = {name: self._code.variables[name] for name in surroundings}

    def capture(self) -> dict[str, object]:
        """Their state now. Raises NotCapturable naming an attribute that holds more than can be captured."""
        while True:
            surroundings = self._surroundings()
            self._check_none_is_deleted(surroundings)
            changed = [name for name, graph in surroundings.items() if self._has_changed(name, graph)]
            graph = ObjectGraph(_elsewhere(surroundings, changed))
            variables = {name: graph.add(_variable_value(surroundings[name]), name) for name in changed}
            copies = self._add_to(graph)
            if not self._note_code(graph):  # or else objects of new classes have appeared, with new surroundings
                break
        if self._code.refused:
            raise NotCapturable(self._code.refused[0])
        graph.check_memory()
        constants = {name: digest for name, digest in self._constants().items() if self._made.get(name) == digest}
        return {
            "nodes": graph.nodes,
            "copies": copies,
            "variables": variables,
            "constants": constants,
            "surroundings": {
                name: _constant_digest(surroundings[name]) for name in surroundings if name not in changed
            },
            "code": self._code.functions,
            "python": _python(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a captured state. Raises CannotRestore, and has then changed nothing."""
        if "nodes" not in state:
            raise CannotRestore("the saved state is of an earlier release")
        if len(state["copies"]) != len(self._environments):
            raise CannotRestore(
                f"the saved state is of {len(state['copies'])} copies of the environment, here are"
                f" {len(self._environments)}"
            )
        fresh = ObjectGraph(opaque_allowed=True)
        copies = self._add_to(fresh)
        self._note_code(fresh)
        surroundings = self._surroundings()
        self._check_classes(state)
        self._check_same(state, surroundings)
        missing = [name for name in state["variables"] if name not in surroundings]
        if missing:
            raise CannotRestore(f"the saved state has {missing[0]}, which the environment's code does not have")
        variables = [fresh.add(_variable_value(surroundings[name]), name) for name in state["variables"]]
        kept = {id(value) for name in surroundings.keys() - state["variables"] for value in surroundings[name].objects}

        def elsewhere(node: Node) -> object:
            graph = surroundings[node["variable"]]
            if graph.nodes[node["index"]][KIND] != node["was"]:
                raise CannotRestore(f"the saved state has a part of {node['variable']}, which is another one here")
            return graph.objects[node["index"]]

        known = Known(
            [*fresh.objects, *(value for graph in surroundings.values() for value in graph.objects)],
            self._code.modules.values(),
        )
        roots = [*state["variables"].values(), *state["copies"]]
        restoration = Restoration(state["nodes"], roots, fresh, [*variables, *copies], known, kept, elsewhere)
        values = {name: restoration.value(saved) for name, saved in state["variables"].items()}
        for saved, environment in zip(state["copies"], self._environments, strict=True):
            if restoration.value(saved) is not environment:
                raise CannotRestore("the saved state is of other environments")
        restoration.fill()
        for name, value in values.items():
            self._code.variables[name].set(value)

    def _add_to(self, graph: ObjectGraph) -> list[Any]:
        several = len(self._environments) > 1
        return [
            graph.add(environment, f"copy {place}: " if several else "")
            for place, environment in enumerate(self._environments)
        ]

    def _note_code(self, graph: ObjectGraph) -> bool:
        """Whether objects of classes that were not there before, or other functions, are in a graph."""
        before = len(self._classes) + len(self._functions)
        self._classes |= dict.fromkeys(one if isinstance(one, type) else type(one) for one in graph.objects)
        self._functions |= {one.__code__: one for one in graph.objects if isinstance(one, types.FunctionType)}
        return len(self._classes) + len(self._functions) > before

    def _check_none_is_deleted(self, surroundings: Mapping[str, ObjectGraph]) -> None:
        for name in self._places.keys() - surroundings.keys():
            try:
                self._places[name].value()
            except KeyError:
                raise NotCapturable(f"{name} was deleted, and would be there again") from None
            except ValueError:
                continue

    def _has_changed(self, name: str, graph: ObjectGraph) -> bool:
        """Whether a variable has changed since the environments were made; one that holds them always has."""
        own = set(map(id, self._environments))
        return graph.digest() != self._variables.get(name) or any(id(value) in own for value in graph.objects)

    def _surroundings(self) -> dict[str, ObjectGraph]:
        """What the environments' code sees besides them, as it is now; sets `_code`."""
        found: dict[str, ObjectGraph] = {}
        while True:  # since what is in a variable may be code, too, which sees other variables
            self._code = ReachableCode(self._classes, self._functions.values(), self._called.values())
            before = len(self._called)
            for name, variable in self._code.variables.items():
                if name in found:
                    continue
                try:
                    value = variable.value()
                except (KeyError, ValueError):
                    continue
                # In a list, so that scalars have a graph too.
                found[name] = ObjectGraph(opaque_allowed=True)
                found[name].add([value], name)
                for one in found[name].objects:
                    code = one if isinstance(one, (type, types.FunctionType)) else type(one)
                    self._called[id(code)] = code
            if len(self._called) == before:
                return found

    def _constants(self) -> dict[str, str]:
        """Digests of the attributes that the copies agree on, by their path."""
        found: dict[str, str] | None = None
        for environment in self._environments[:_COMPARED]:
            own = dict(_attribute_digests(environment))
            found = own if found is None else dict(found.items() & own.items())
        return found or {}

    def _check_classes(self, state: Mapping[str, Any]) -> None:
        for saved, environment in zip(state["copies"], self._environments, strict=True):
            try:
                before = state["nodes"][saved["at"]]["class"]
                if isinstance(before, dict):
                    before = state["nodes"][before["at"]]["name"]
                different = before != type_name(type(environment))
                before = before.rpartition(":")[2]
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise CannotRestore(f"the saved state can't be understood: {error!r}") from error
            if different:
                raise CannotRestore(
                    f"the saved state is of the environment class {before!r}, this is a {type(environment).__name__!r}"
                )

    def _check_same(self, state: Mapping[str, Any], surroundings: Mapping[str, ObjectGraph]) -> None:
        # Only what is in both: classes whose objects come later are not known yet.
        constants = {name: _constant_digest(graph) for name, graph in surroundings.items()} | self._made
        saved = {**state["surroundings"], **state["constants"]}
        if state["python"] == _python():
            constants |= self._code.functions
            saved |= state["code"]
        changed = [name for name, digest in saved.items() if constants.get(name, digest) != digest]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise CannotRestore(f"the environment's code or its settings have changed: {', '.join(changed[:3])}{more}")


def _elsewhere(surroundings: Mapping[str, ObjectGraph], changed: Sequence[str]) -> dict[int, Node]:
    """The nodes of objects that belong to variables which have not changed. Raises NotCapturable where that can't be
    told."""
    nodes: dict[int, Node] = {}
    for name, graph in surroundings.items():
        if name not in changed:
            _check_constant(name, graph)
            for index, value in enumerate(graph.objects):
                if _has_identity(value):
                    node = {KIND: "elsewhere", "variable": name, "index": index, "was": graph.nodes[index][KIND]}
                    nodes.setdefault(id(value), node)
    return nodes


def _attribute_digests(environment: object) -> Iterator[tuple[str, str]]:
    """Of all attributes of an environment, its wrappers, and the objects that they hold in attributes."""
    pending: list[tuple[str, Any]] = [("", environment)]
    seen: set[int] = set()
    while pending:
        path, value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        for name, item in attributes_of(value).items():
            if is_instance(item):
                pending.append((f"{path}.{name}", item))
                continue
            graph = ObjectGraph(opaque_allowed=True, generators=False, limit=_CONSTANT_NODES)
            graph.add([item], "")
            if graph.complete and not graph.opaque:
                yield f"{path}.{name}", graph.digest()


def _constant_digest(graph: ObjectGraph) -> str:
    again = ObjectGraph(opaque_allowed=True, generators=False)
    again.add(graph.objects[0], "")
    return again.digest()


def _check_constant(name: str, graph: ObjectGraph) -> None:
    for value, _ in graph.opaque:
        if not is_stateless(value):
            raise NotCapturable(f"{name} is of the type {type_name(type(value))}, which may have changed")


def _variable_value(graph: ObjectGraph) -> Any:
    return graph.objects[0][0]


def _has_identity(value: object) -> bool:
    """Whether it matters that it is this object and not one that is equal."""
    named = isinstance(value, (type, types.FunctionType)) and not is_held(value)
    return not named and not isinstance(value, (types.ModuleType, types.BuiltinFunctionType, np.dtype))


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])
