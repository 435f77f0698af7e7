"""Pictures of MettaGrid's games: a colored grid, in which each type of object has a color, and each agent its own."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from orchestrator.environments.spaces import Array

_LONGEST = 640
"""Pixels of the longer side, at most where cells have more than `_CELL`."""
_CELL = 4
"""Pixels that a cell has at least."""
_FLOOR, _WALL = (235, 230, 220), (90, 90, 95)


def picture(simulation: Any) -> Array:
    """uint8 `[height, width, 3]` of a simulation as it is: agents are discs, whatever else there is squares."""
    height, width = simulation.map_height, simulation.map_width
    cell = max(_CELL, _LONGEST // max(height, width) // 2 * 2)  # even, as video formats need their sides
    pixels = np.full((height, width, cell, cell, 3), _FLOOR, np.uint8)
    names = [name for name in sorted(simulation.object_type_names) if name not in ("", "agent", "wall")]
    of_types = {name: _color(index / len(names), 0.45, 0.75) for index, name in enumerate(names)}
    of_types["wall"] = _WALL
    disc = _disc(cell)
    for found in simulation.grid_objects().values():
        place = pixels[found["r"], found["c"]]
        agent = found.get("agent_id")
        if agent is None:
            place[...] = of_types[found["type_name"]]
        else:
            place[disc] = _color(agent / simulation.num_agents, 0.95, 0.85)
    return pixels.swapaxes(1, 2).reshape(height * cell, width * cell, 3)


def _color(hue: float, saturation: float, brightness: float) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, brightness))


def _disc(cell: int) -> Array:
    """Where `[cell, cell]` the pixels of one are."""
    from_middle = (np.arange(cell) + 0.5) / cell - 0.5
    return from_middle[:, None] ** 2 + from_middle**2 < 0.2
