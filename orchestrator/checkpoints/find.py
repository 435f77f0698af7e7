"""From what a user names (a checkpoint, a run, an address) to a verified checkpoint."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.checkpoints.checkpoint import Checkpoint, open_checkpoint
from orchestrator.checkpoints.folder import CheckpointFolder
from orchestrator.checkpoints.manifest import MANIFEST, NAME_ANOTHER, CheckpointDamaged, CheckpointError
from orchestrator.checkpoints.objects import SCHEMES
from orchestrator.config.user_path import user_path

_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):/{{1,2}}")

_SHOWN = 10


def find_checkpoint(where: Path | str) -> Checkpoint:
    """The checkpoint at `where`, or the newest valid one of the run at `where`, verified.

    `where` is a path, or an address that begins with file://, s3://, gs://, az:// or memory://; what is in an object
    store is copied to this machine (see `RemoteCheckpoints.download`). Raises CheckpointError naming what is missing
    or damaged, and StoreUnavailable (a ConnectionError) where a store cannot be reached.
    """
    address = as_address(where)
    if address is not None and not address.startswith("file://"):
        from orchestrator.checkpoints.remote import find_remote

        return find_remote(address)
    path = local_place(where)
    if os.path.lexists(path / MANIFEST):
        try:
            checkpoint = open_checkpoint(path)
            checkpoint.verify()
        except CheckpointDamaged as error:
            raise CheckpointDamaged(f"{error}; {NAME_ANOTHER}") from error
        return checkpoint
    for folder in folders_of(path):
        if folder.used():
            return folder.newest_valid()
    raise CheckpointError(nothing_at(path))


def nothing_at(path: Path) -> str:
    """Why there is no checkpoint at a path, and what may be meant."""
    if not os.path.lexists(path):
        meant = meant_by(path)
        return f"{path} does not exist" + (f": {meant}" if meant else "")
    inside = [one for one in _folders_in(path) if (one / "checkpoints").is_dir()]
    runs = f"; name one of the runs in it: {', '.join(map(str, inside[:_SHOWN]))}" if inside else ""
    more = ", ..." if len(inside) > _SHOWN else ""
    return f"{path} is neither a checkpoint ({MANIFEST} is missing) nor a run with checkpoints in it{runs}{more}"


def meant_by(path: Path) -> str:
    """A question whether a path that does not exist means another, which does; "" where none is like it."""
    names = [one.name for one in _folders_in(path.parent)]
    same = [name for name in names if name.isdigit() and path.name.isdigit() and int(name) == int(path.name)]
    near = same or difflib.get_close_matches(path.name, names, n=3)
    return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""


def _folders_in(path: Path) -> list[Path]:
    try:
        return sorted(one for one in path.iterdir() if one.is_dir())
    except OSError:
        return []


def local_place(where: Path | str) -> Path:
    """The path that a path or a file:// address names."""
    address = as_address(where)
    return user_path(where) if address is None else Path(unquote(urlsplit(address).path))


def folders_of(path: Path) -> tuple[CheckpointFolder, ...]:
    """Where the checkpoints of a run may be: in its folder, or right here."""
    return CheckpointFolder(path / "checkpoints"), CheckpointFolder(path)


def local_path(address: str | None, folder: Path) -> Path | None:
    """The path of a checkpoint that an address names, if it is one of `folder`, and not a copy elsewhere."""
    if address is None or not address.startswith("file://"):
        return None
    path = Path(unquote(urlsplit(address).path))
    return path if path.parent == folder.absolute() else None


def as_address(where: Path | str) -> str | None:
    """The address of a place in an object store; None for a path.

    Also where it was taken for a path before, and has lost a slash by that.
    """
    match = _ADDRESS.match(str(where))
    if match is None:
        return None
    rest = str(where)[match.end() :]
    return f"file:///{rest.lstrip('/')}" if match[1] == "file" else f"{match[1]}://{rest}"
