"""Public names of a package, each written once, and imported when it is first used."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names are the imports under its `if TYPE_CHECKING:`.

    So type checkers, editors and the running program read one list. The package's source must be there.
    """
    module = sys.modules[package]

    @functools.cache
    def homes() -> dict[str, str]:
        import ast  # only now: importing a module below the package needs none of this

        loader: Any = module.__loader__
        blocks = [node for node in ast.parse(loader.get_source(package)).body if isinstance(node, ast.If)]
        imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
        return {alias.name: str(node.module) for node in imports for alias in node.names}

    def get(name: str) -> Any:
        if name == "__all__":
            return list(homes())
        if name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes()[name]), name)

    return get, lambda: sorted(homes())
