"""One committed checkpoint: opening it, and reading its files with their sizes and hashes checked."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.filesystem import hash_regular, read_regular
from orchestrator.checkpoints.manifest import MANIFEST, POLICY, CheckpointDamaged, CheckpointError, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint; `manifest` holds its facts and the size and hash of each file."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        return self.manifest["epoch"]

    def read(self, name: str) -> bytes:
        """The content of one file. Raises CheckpointDamaged, and CheckpointError for a file that it never had."""
        return self._checked(name, _read)

    def verify(self) -> None:
        """Read every file and compare it with the manifest. Raises CheckpointDamaged naming the first bad one."""
        for name in self.manifest["files"]:
            self._checked(name, hash_regular)

    def file(self, name: str) -> Path:
        """Where one of its files is. Raises CheckpointError for a file that it never had."""
        if name not in self.manifest["files"]:
            raise CheckpointError(f"{self.path} has no file {name!r}; it has {', '.join(self.manifest['files'])}")
        return self.path / self.manifest.get("folder", "") / name

    def load_into(self, module: nn.Module) -> None:
        """Give `module` the saved weights. Raises ValueError listing the tensors that do not fit."""
        from safetensors.numpy import load

        from state.policy_snapshot import load_arrays

        load_arrays(module, load(self.read(POLICY)))

    def _checked(self, name: str, look: Callable[[Path], Any]) -> Any:
        path = self.file(name)
        expected = self.manifest["files"][name]
        try:
            found = look(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        size, sha256 = (len(found), hashlib.sha256(found).hexdigest()) if isinstance(found, bytes) else found
        if size != expected["bytes"]:
            raise CheckpointDamaged(f"{path} is damaged: it has {size} bytes instead of {expected['bytes']}")
        if sha256 != expected["sha256"]:
            raise CheckpointDamaged(f"{path} is damaged: its hash is not what the manifest says")
        return found


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its manifest checked, its files not yet: see `verify`. Raises CheckpointError."""
    try:
        content = read_regular(path / MANIFEST)
    except OSError as error:
        raise _unreadable(path / MANIFEST, error) from error
    return Checkpoint(path=path, manifest=parse_manifest(content, path / MANIFEST))


def _read(path: Path) -> bytes:
    return read_regular(path)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointDamaged(f"{path} is missing")
    if error.errno == errno.ELOOP:
        return CheckpointDamaged(f"{path} is a link, which may lead outside of the checkpoint")
    if error.errno in (errno.EINVAL, errno.EISDIR, errno.ENXIO):
        return CheckpointDamaged(f"{path} is no ordinary file")
    # Damage or not: a file without permission is as it was, and moving it aside would help nobody.
    return CheckpointError(f"{path} cannot be read: {error.strerror}")
