"""The packages `losses` and `state` come with this one. A user's own file of such a name, where Python finds it first,
would hide them, and an import somewhere inside would fail; so the import of `orchestrator` says it at once.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAMES = ("losses", "state")
_HOME = Path(__file__).resolve().parent.parent


def check_companions() -> None:
    """Raises ImportError that names a file which hides one of the packages. Imports nothing."""
    for name in NAMES:
        found = _place_of(name)
        if found is not None and not _is_ours(found, name):
            raise ImportError(f"{found} hides the package `{name}` that orchestrator needs: {_cure(name)}", name=name)


def hidden_in(folder: Path) -> str | None:
    """What is wrong with a folder in which a user's own file has the name of one of the packages, which hides it there;
    None where nothing is, also in a copy of this project."""
    if (folder / "orchestrator" / "__init__.py").is_file():
        return None
    for name in NAMES:
        for file in (folder / f"{name}.py", folder / name / "__init__.py"):
            if file.is_file() and not _is_ours(file, name):
                return f"{file} has the name of the package `{name}` that orchestrator needs: {_cure(name)}"
    return None


def _place_of(name: str) -> Path | None:
    """The file that `import name` gives; None where there is none, or a mere folder, which hides nothing."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
        return None if file is None else Path(file)
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _is_ours(file: Path, name: str) -> bool:
    return file.resolve().parent == (_HOME / name).resolve()


def _cure(name: str) -> str:
    return f"rename it (to my_{name}, say), also where it is imported, or move it to another folder"
