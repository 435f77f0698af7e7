"""Paths as users write them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path in which `~`, or `~name`, at the beginning stands for a home folder, as in a shell.

    A name that nobody has stays as it is.
    """
    plain = Path(path)
    with contextlib.suppress(RuntimeError):
        return plain.expanduser()
    return plain


def is_text(path: str) -> bool:
    """Whether a path can be that of a file, and be written into one: without zero bytes and halves of characters."""
    try:
        return b"\0" not in path.encode()
    except UnicodeEncodeError:
        return False
