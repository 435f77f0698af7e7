"""One committed checkpoint: opening it, and reading its files with their sizes and hashes checked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.filesystem import hash_regular, read_once, read_regular
from orchestrator.checkpoints.manifest import (
    MANIFEST,
    POLICY,
    SCORES,
    CheckpointDamaged,
    CheckpointError,
    parse_manifest,
    parse_scores,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from pathlib import Path

    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint; `manifest` holds its facts and the size and hash of each file."""

    path: Path
    manifest: Mapping[str, Any]
    scores: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Metrics of its policy that came after it was committed."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """All metrics of the checkpoint's policy, whenever they came."""
        return {**self.manifest["metrics"], **self.scores}

    @property
    def epoch(self) -> int:
        return self.manifest["epoch"]

    def read(self, name: str) -> bytes:
        """The content of one file. Raises CheckpointDamaged, and CheckpointError for a file that it never had."""
        with _readable(self.file(name)) as path:
            content = read_regular(path)
        self._compare(name, len(content), hashlib.sha256(content).hexdigest())
        return content

    def pieces(self, name: str) -> Iterator[bytes]:
        """As `read`, piece by piece, whatever the size in little memory. That it is damaged is known at its end."""
        size, digest = 0, hashlib.sha256()
        with _readable(self.file(name)) as path:
            for piece in read_once(path, _PIECE):
                size += len(piece)
                digest.update(piece)
                yield piece
        self._compare(name, size, digest.hexdigest())

    def verify(self) -> None:
        """Read every file and compare it with the manifest. Raises CheckpointDamaged naming the first bad one."""
        for name in self.manifest["files"]:
            with _readable(self.file(name)) as path:
                found = hash_regular(path)
            self._compare(name, *found)

    def file(self, name: str) -> Path:
        """Where one of its files is. Raises CheckpointError for a file that it never had."""
        if name not in self.manifest["files"]:
            raise CheckpointError(f"{self.path} has no file {name!r}; it has {', '.join(self.manifest['files'])}")
        return self.path / self.manifest.get("folder", "") / name

    def load_into(self, module: nn.Module) -> None:
        """Give `module` the saved weights. Raises ValueError listing the tensors that do not fit, and CheckpointError
        for what is no safetensors file."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        from state.policy_snapshot import load_arrays

        content = self.read(POLICY)
        try:
            arrays = load(content)
        except (SafetensorError, KeyError, ValueError) as error:
            raise not_understood(self.file(POLICY), error) from error
        load_arrays(module, arrays)

    def _compare(self, name: str, size: int, sha256: str) -> None:
        expected = self.manifest["files"][name]
        if size != expected["bytes"]:
            raise CheckpointDamaged(f"{self.file(name)} is damaged: it has {size} bytes instead of {expected['bytes']}")
        if sha256 != expected["sha256"]:
            raise CheckpointDamaged(f"{self.file(name)} is damaged: its hash is not what the manifest says")


_log = logging.getLogger("orchestrator.checkpoints")
_PIECE = 1024 * 1024


def not_understood(file: Path, error: Exception) -> CheckpointError:
    """For a file that is as the manifest says, and yet nothing that this project writes: `error` is what that makes of
    reading it."""
    what = str(error) if isinstance(error, ValueError) else repr(error)
    return CheckpointError(
        f"{file} is damaged: {what}; name another checkpoint: `orchestrator checkpoints list` shows those of a run"
    )


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its manifest checked, its files not yet: see `verify`. Raises CheckpointError."""
    with _readable(path / MANIFEST) as file:
        content = read_regular(file)
    manifest = parse_manifest(content, path / MANIFEST)
    return Checkpoint(path=path, manifest=manifest, scores=_scores(path, manifest))


def _scores(path: Path, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What came late; nothing, with a warning in the log, where it can't be read: the checkpoint is whole without."""
    if not os.path.lexists(path / SCORES):
        return {}
    try:
        with _readable(path / SCORES) as file:
            return parse_scores(read_regular(file), manifest, file)
    except CheckpointError as error:
        _log.warning("the scores of a checkpoint are left out: %s", error)
        return {}


def is_valid(checkpoint: Checkpoint) -> bool:
    """Whether every byte is as it was written."""
    try:
        checkpoint.verify()
    except CheckpointError:
        return False
    return True


@contextlib.contextmanager
def _readable(path: Path) -> Generator[Path]:
    """What the system says about a file that it does not let us read, as a CheckpointError."""
    try:
        yield path
    except FileNotFoundError as error:
        raise CheckpointDamaged(f"{path} is missing") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointDamaged(f"{path} is a link, which may lead outside of the checkpoint") from error
        if error.errno in (errno.EINVAL, errno.EISDIR, errno.ENXIO):
            raise CheckpointDamaged(f"{path} is no ordinary file") from error
        # Damage or not: a file without permission is as it was, and moving it aside would help nobody.
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
