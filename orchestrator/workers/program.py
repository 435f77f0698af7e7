"""The host's program, as far as its workers must know it: where it finds modules, its arguments, its main module."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from multiprocessing import process, spawn
from pathlib import Path
from typing import Any

from orchestrator.workers.fork_server import environment, search_path

_FIRST_DIR: str | None = getattr(process, "ORIGINAL_DIR", None)
"""The working directory when the program began, to which a relative path of its main module refers."""
_entering = False


def describe(name: str) -> dict[str, Any]:
    """What `enter` is to be given in the worker called `name`."""
    described: dict[str, Any] = {
        "environment": environment(),
        "name": f"orchestrator-{name}",
        "sys_path": search_path(),
        "sys_argv": sys.argv,
        "orig_dir": _FIRST_DIR,
        "start_method": multiprocessing.get_start_method(allow_none=True),
        **_main_module(),
    }
    with contextlib.suppress(FileNotFoundError):  # it has been deleted
        described["dir"] = str(Path.cwd())
    return described


def enter(described: dict[str, Any]) -> None:
    """Make this process one of the host's program; its main module is imported under the name `__mp_main__`.

    Raises RuntimeError where that cannot be imported.
    """
    global _entering
    os.environ.clear()
    os.environ.update(described.pop("environment"))
    _entering = True
    try:
        spawn.prepare(described)
    except BaseException as error:
        main = described.get("init_main_from_name") or described.get("init_main_from_path")
        if isinstance(error, _StartedByImport):  # all of whose traceback says no more
            raise RuntimeError(f"{main} {error}") from None
        raise RuntimeError(
            f"workers import the program's main module, {main}, and that failed with {type(error).__name__}: {error} "
            "(what it is to do only as a program belongs under `if __name__ == '__main__':`)"
        ) from error
    finally:
        _entering = False


class _StartedByImport(RuntimeError):
    """What the program's main module does."""


def check_not_entering() -> None:
    """Raises an error in a worker that is importing the host's main module, which would start workers again."""
    if _entering:
        raise _StartedByImport(
            "starts a training when it is imported, and workers import it: a script must start its training under"
            " `if __name__ == '__main__':`"
        )


def main_is_known_to_workers() -> bool:
    """Whether workers can import what the main module defines: not that of a notebook, `-c`, a package, an archive."""
    return bool(_main_module())


def _main_module() -> dict[str, str]:
    main = sys.modules.get("__main__")
    name: str | None = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return {} if name.rpartition(".")[2] == "__main__" else {"init_main_from_name": name}
    path: str | None = getattr(main, "__file__", None)
    if path is None:
        return {}
    path = os.path.normpath(Path(_FIRST_DIR or "", path))
    return {"init_main_from_path": path} if os.path.isfile(path) else {}  # noqa: PTH113 - beside normpath
