"""Whether a policy made for one environment can act in another."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from orchestrator.environments.spaces import Space


def space_differences(needed: Space, found: Space) -> list[str]:
    """What keeps a policy for agents' spaces `needed` from `found`, part by part; empty where nothing does.

    Bounds of a Box may differ: actions are clipped to those of the environment that they are for.
    """
    if not isinstance(needed, spaces.Dict) or not isinstance(found, spaces.Dict):
        return [] if _form(needed) == _form(found) else [f"{_describe(found)} instead of {_describe(needed)}"]
    differences = [f"there is no key {key!r}" for key in needed if key not in found.spaces]
    differences += [f"the key {key!r} is unknown" for key in found if key not in needed.spaces]
    for key, leaf in needed.items():
        if key in found.spaces:
            differences += [f"{text} of key {key!r}" for text in space_differences(leaf, found[key])]
    return differences


def _form(space: Space) -> tuple[Any, ...]:
    """All that the shape of a network's tensors and the meaning of its numbers can depend on."""
    sizes: Any = None
    if isinstance(space, spaces.Discrete):
        sizes = int(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        sizes = space.nvec.tolist()
    return type(space), space.shape, space.dtype, sizes


def _describe(space: Space) -> str:
    return f"Box of {space.dtype}{list(space.shape)}" if isinstance(space, spaces.Box) else str(space)
