"""The parameters and buffers of a module, by name, and where it keeps them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers; one that has several names by the first of them."""
    return dict([*module.named_parameters(), *module.named_buffers()])


def tensor_places(module: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """By every name, the dict of a submodule's that holds the parameter or buffer (or None), and its key there."""
    places: dict[str, tuple[dict[str, Any], str]] = {}
    for path, submodule in module.named_modules():
        # nn.Module has no public way to put a buffer back where a module has reassigned it.
        for table in (submodule._parameters, submodule._buffers):  # pyright: ignore[reportPrivateUsage]
            for name in table:
                places[f"{path}.{name}" if path else name] = table, name
    return places
