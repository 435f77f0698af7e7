"""From what a user names (a checkpoint, a run, an address) to a verified checkpoint."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.checkpoints.checkpoint import Checkpoint, open_checkpoint
from orchestrator.checkpoints.folder import CheckpointFolder
from orchestrator.checkpoints.manifest import MANIFEST, CheckpointError


def find_checkpoint(where: Path | str) -> Checkpoint:
    """The checkpoint at `where`, or the newest valid one of the run at `where`, verified.

    Raises CheckpointError naming what is missing or damaged.
    """
    path = Path(unquote(urlsplit(where).path)) if isinstance(where, str) and where.startswith("file:") else Path(where)
    if (path / MANIFEST).exists() or (path / MANIFEST).is_symlink():
        checkpoint = open_checkpoint(path)
        checkpoint.verify()
        return checkpoint
    for folder in (CheckpointFolder(path / "checkpoints"), CheckpointFolder(path)):
        if folder.list():
            return folder.newest_valid()
    raise CheckpointError(f"{path} is neither a checkpoint ({MANIFEST} is missing) nor a run with checkpoints in it")
