"""A module as any package may have one: under its own names there are functions of the standard library, which whoever
writes settings may try to reach by them."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
from pathlib import Path
from subprocess import call

shell = functools.partial(os.system)
twice_removed = functools.partial(functools.partial(call))
cached = functools.lru_cache(maxsize=None)(os.popen)
log = logging.getLogger("borrowed")
settings = {"a": 1}


class Process(subprocess.Popen[bytes]):
    """Whose inherited methods are not defined here."""


@functools.wraps(call)
def disguised(*arguments: object, **options: object) -> object:
    return call(*arguments, **options)  # type: ignore[call-overload]


__all__ = ["Path", "Process", "cached", "call", "disguised", "os", "shell", "twice_removed"]
