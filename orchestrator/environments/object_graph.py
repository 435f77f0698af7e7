"""Objects as plain data: every object is one node of a table, however many names it has, so that what shares an object,
or an array's memory, shares it again when it is restored.

No code is stored. Of classes, functions and modules a node holds the name alone, and `object_restore` accepts only
names that the new objects have themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast

import torch

from orchestrator.environments.object_kinds import encode
from orchestrator.environments.object_nodes import (
    AT,
    KIND,
    LONG_INTEGER,
    SCALARS,
    Node,
    NotCapturable,
    Path,
    digest_of,
    text_of,
    type_name,
)


class ObjectGraph:
    """The nodes of all that can be reached from what was added.

    Objects in `elsewhere` (by `id`) become the node that is given there, and are not looked into. With
    `opaque_allowed`, what can't be captured becomes a node of the kind "opaque" instead of raising NotCapturable;
    without `generators`, random generators are all alike.
    """

    def __init__(
        self,
        elsewhere: Mapping[int, Node] | None = None,
        *,
        opaque_allowed: bool = False,
        generators: bool = True,
        limit: int | None = None,
    ) -> None:
        self.nodes: list[Node] = []
        self.objects: list[Any] = []
        """What each node is of. Also keeps it alive: the table goes by identity."""
        self.opaque: list[tuple[object, str]] = []
        """What could not be captured, and where it is."""
        self.complete = True
        """Whether `limit` nodes were enough."""
        self._elsewhere = elsewhere or {}
        self._opaque_allowed = opaque_allowed
        self.generators = generators
        self._limit = limit or sys.maxsize
        self._index: dict[int, int] = {}
        self._paths: list[Path] = []
        self._done = 0
        self._memory: list[tuple[int, int, Path]] = []
        self._attributes: dict[int, Path] = {}

    def add(self, value: object, path: Path) -> Any:
        """What stands for `value`: itself where it is a scalar, else a reference to its node.

        Raises NotCapturable.
        """
        reference = self.reference(value, path)
        while self._done < len(self.nodes):
            if self._done >= self._limit:
                self.complete = False
                break
            index = self._done
            self._done += 1
            value, path = self.objects[index], self._paths[index]
            try:
                self.nodes[index] = self._elsewhere.get(id(value)) or encode(self, value, path)
            except NotCapturable:
                if not self._opaque_allowed:
                    raise
                self.nodes[index] = {KIND: "opaque", "type": type_name(type(value))}
                if type(value) is frozenset and all(type(item) in SCALARS for item in value):
                    # Its order can't be restored, but all that can change is which one it is.
                    self.nodes[index]["members"] = sorted(map(repr, value))
                else:
                    self.opaque.append((value, text_of(path)))
        return reference

    def check_memory(self) -> None:
        """Raises NotCapturable where an array and a tensor, say, share memory without the one being made of the
        other, or where the attributes of an object are held as a dict elsewhere."""
        end, last = 0, cast("Path", "")
        for begin, stop, path in sorted(self._memory, key=lambda entry: entry[:2]):
            if begin < end:
                raise NotCapturable(f"{text_of(path)} and {text_of(last)} share memory")
            if stop > end:
                end, last = stop, path

        for key, path in self._attributes.items():
            if key in self._index:
                raise NotCapturable(f"the __dict__ of {text_of(path)} is held somewhere else, too")

    def digest(self) -> str:
        """Equal for equal graphs."""
        return digest_of(self.nodes)

    # For the kinds of nodes.

    def reference(self, value: Any, path: Path) -> Any:
        """What stands for a value: itself, or a reference to its node, which is made later."""
        kind = type(value)
        if kind in SCALARS and (kind is not int or value.bit_length() < LONG_INTEGER):
            return value
        # A storage is another Python object each time it is asked for.
        key = value.data_ptr() if kind is torch.UntypedStorage and value.nbytes() else id(value)
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self.nodes)
            self.nodes.append({})
            self.objects.append(value)
            self._paths.append(path)
        return {AT: index}

    def items(self, values: Any, path: Path) -> list[Any]:
        """What stands for each of `values`."""
        return [
            value if type(value) in (bool, float, str) else self.reference(value, (path, f"[{place}]"))
            for place, value in enumerate(values)
        ]

    def named(self, values: Mapping[str, Any], path: Path) -> Node:
        """The part of a node that tells attributes."""
        return {
            "names": list(values),
            "values": [self.reference(value, (path, f".{name}")) for name, value in values.items()],
        }

    def note_attributes(self, value: object, path: Path) -> None:
        """An object's `__dict__` is its own."""
        if hasattr(value, "__dict__"):
            self._attributes[id(vars(value))] = path

    def note_memory(self, begin: int, size: int, path: Path) -> None:
        """`size` bytes from the address `begin` belong to an object."""
        if size:
            self._memory.append((begin, begin + size, path))
