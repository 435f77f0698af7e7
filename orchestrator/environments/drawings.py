"""What pygame draws on or with, which an environment has from the start: of it, only pixels are state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from orchestrator.environments.object_nodes import KIND, CannotRestore, Node, type_name

if TYPE_CHECKING:
    from collections.abc import Mapping

_SURFACE = "pygame.surface:Surface"
DRAWING = (_SURFACE, "pygame.font:Font", "pygame.freetype:Font", "pygame.time:Clock")


class _Restoration(Protocol):
    @property
    def there(self) -> Mapping[int, Any]: ...


def drawing_node(value: Any) -> Node:
    """The node of one."""
    name = type_name(type(value))
    is_surface = name == _SURFACE
    pixels = np.frombuffer(value.get_buffer().raw, np.uint8) if is_surface else None
    return {KIND: "drawing", "class": name, "pixels": pixels, "shape": list(value.get_size()) if is_surface else []}


def drawing_there(restoration: _Restoration, node: Node, index: int) -> Any:
    """The one that stands in its place. Raises CannotRestore where there is none."""
    if index not in restoration.there:
        raise CannotRestore(f"the saved state has a {node['class']!r} that is not there, or of another size")
    return restoration.there[index]


def fill_drawing(restoration: _Restoration, value: Any, node: Node) -> None:
    """Give a surface the pixels that its node has."""
    if node["pixels"] is not None:
        value.get_buffer().write(node["pixels"].tobytes())
