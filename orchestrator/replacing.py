"""Writes files so that whoever reads one finds it as it was or as it is to be, never half of it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A path in the same folder, which is made if it is missing. What has been written there when the context ends
    takes the place of `path` in one step; if nothing has, or an error ends the context, `path` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    working = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield working
        if working.exists():
            working.replace(path)
    finally:
        working.unlink(missing_ok=True)
