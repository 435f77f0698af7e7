"""Puts the objects of an `ObjectGraph` back, into new objects that were made in the same way.

Nothing is imported, and no code is called that the new objects do not hold: a class, function or module that a
checkpoint names must be one of theirs. Whether everything can be restored is known before anything is changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from orchestrator.environments.cached_methods import is_remembered, remember
from orchestrator.environments.object_graph import ObjectGraph
from orchestrator.environments.object_makers import FILL, HASHING, MAKE
from orchestrator.environments.object_nodes import AT, KIND, CannotRestore, Node
from orchestrator.environments.reachable_code import Known


class Restoration:
    """Makes the objects of saved `nodes`, of which `roots` stand for those at the same place in `fresh_roots`, of the
    graph `fresh`.

    Objects of classes, and functions, are those that are there already, where they have the same place, unless they are
    in `kept`, by `id`; all other objects are new. `elsewhere` finds the object of a node of the kind "elsewhere".
    Making one raises CannotRestore; then `fill` gives all of them what they held.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        roots: Sequence[Any],
        fresh: ObjectGraph,
        fresh_roots: Sequence[Any],
        known: Known,
        kept: Iterable[int],
        elsewhere: Callable[[Node], object],
    ) -> None:
        self.nodes = nodes
        self.known = known
        self.elsewhere = elsewhere
        self._objects: dict[int, Any] = {}
        self.there: dict[int, Any] = {}
        self._match(roots, fresh, fresh_roots, set(kept))
        for index in range(len(nodes)):
            try:
                self._object(index)
            except CannotRestore:
                raise
            except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError, RuntimeError) as error:
                raise CannotRestore(f"the saved state can't be understood: {error!r}") from error

    def value(self, saved: Any) -> Any:
        """What a saved scalar or reference stands for."""
        return self._object(saved[AT]) if isinstance(saved, dict) else saved

    def fill(self) -> None:
        """Give every object what it held."""
        # What is a key, or in a set, comes first: its hash may depend on it.
        for index in sorted(self._objects, key=lambda index: self.nodes[index][KIND] in HASHING):
            node = self.nodes[index]
            fill = FILL.get(node[KIND])
            if fill is not None:
                fill(self, self._objects[index], node)
        for index, value in self._objects.items():
            if self.nodes[index][KIND] == "instance":
                for name, results in self.named(self.nodes[index]).items():
                    if is_remembered(name):
                        remember(value, name, results)

    def _match(self, roots: Sequence[Any], fresh: ObjectGraph, fresh_roots: Sequence[Any], taken: set[int]) -> None:
        seen: set[tuple[int, int]] = set()
        pending = deque(zip(roots, fresh_roots, strict=True))
        while pending:
            saved, there = pending.popleft()
            if not (isinstance(saved, dict) and isinstance(there, dict)):
                continue
            index, other = cast("tuple[int, int]", (saved[AT], there[AT]))
            if (index, other) in seen or not 0 <= index < len(self.nodes):
                continue
            seen.add((index, other))
            node, current = self.nodes[index], fresh.nodes[other]
            value = fresh.objects[other]
            if _same_kind(node, current) and index not in self.there and id(value) not in taken:
                taken.add(id(value))
                self.there[index] = value
            links = _links(current)
            pending.extend((link, links[label]) for label, link in _links(node).items() if label in links)

    def _object(self, index: int) -> Any:
        if index not in self._objects:
            node = self.nodes[index]
            self._objects[index] = MAKE[node[KIND]](self, node, index)
        return self._objects[index]

    def items(self, node: Node) -> list[Any]:
        """The values of a node's items."""
        return [self.value(item) for item in node["items"]]

    def named(self, node: Node) -> dict[str, Any]:
        """The values of a node's attributes, by name."""
        return dict(zip(node["names"], map(self.value, node["values"]), strict=True))


def _same_kind(node: Node, current: Node) -> bool:
    """Whether an object that is there can take the place of the saved one."""
    if node[KIND] != current[KIND]:
        return False
    match node[KIND]:
        case "instance":  # of a class that was made at run time: see where the object is made
            return node["class"] == current["class"] or isinstance(node["class"], dict)
        case "drawing":
            return (node["class"], node["shape"]) == (current["class"], current["shape"])
        case "function":
            return (node["name"], node["code"]) == (current["name"], current["code"])
        case "own class":
            return all(node.get(part) == current[part] for part in ("name", "members"))
        case "cell" | "property" | "staticmethod" | "classmethod" | "cached_property":
            return True
        case _:
            return False


def _links(node: Node) -> dict[Any, Any]:
    """What a node refers to, by the place that it has there."""
    links: dict[Any, Any] = {name: value for name, value in node.items() if isinstance(value, dict)}
    for several in ("items", "cells", "bases"):
        links |= {(several, place): value for place, value in enumerate(node.get(several, ()))}
    for of, names in (("attributes", "names"), ("values", "keys")):
        pairs = zip(node.get(names, ()), node["values"], strict=True) if names in node else ()
        links |= {(of, name): value for name, value in pairs if not isinstance(name, dict)}
    return links
