"""Checkpoints in a folder: written beside, committed by one rename, verified when read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors.numpy import load_file, save

from state.policy_snapshot import load_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from state.trainer_state import TrainerState

FORMAT_VERSION = 1
MANIFEST, POLICY = "manifest.json", "policy.safetensors"
_NAME = re.compile(r"\d+(-\d+)?")


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of a kind that this version does not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint; `manifest` holds its counters and the size and hash of each file."""

    path: Path
    manifest: Mapping[str, Any]

    def load_into(self, module: nn.Module) -> None:
        """Give `module` the saved weights. Raises ValueError listing the tensors that do not fit."""
        load_arrays(module, load_file(self.path / POLICY))


class CheckpointFolder:
    """The checkpoints of one run, one folder each, named by epoch; none is ever overwritten."""

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        self.path = path
        self._keep = keep

    def commit(self, state: TrainerState) -> Path:
        """Write the state's policy and counters; the checkpoint exists, whole, once this returns. Blocks.

        Afterwards the oldest beyond the `keep` newest are removed (0 keeps all).
        """
        assert state.policy is not None
        self.path.mkdir(parents=True, exist_ok=True)
        attempt = uuid.uuid4().hex[:8]
        # On the same file system, so that the rename is atomic; a name that is never taken for a checkpoint.
        working = self.path / f".writing-{attempt}"
        working.mkdir()
        try:
            files = {POLICY: save(dict(state.policy.tensors), metadata={"format": "pt"})}
            for name, content in files.items():
                _write(working / name, content)
            manifest = {
                "format_version": FORMAT_VERSION,
                "attempt": attempt,
                "epoch": state.epoch,
                "agent_step": state.agent_step,
                "policy_version": state.policy.version,
                "files": {
                    name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                    for name, content in files.items()
                },
            }
            _write(working / MANIFEST, json.dumps(manifest, indent=2).encode())
            _sync_folder(working)
            final = self._free_name(state.epoch)
            working.rename(final)
            _sync_folder(self.path)
        except BaseException:
            shutil.rmtree(working, ignore_errors=True)
            raise
        self._prune(final)
        return final

    def list(self) -> list[Path]:
        """The committed checkpoints, oldest first."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
        return sorted(found, key=_order)

    def _free_name(self, epoch: int) -> Path:
        path = self.path / f"{epoch:08d}"
        attempt = 2
        while path.exists():
            path = self.path / f"{epoch:08d}-{attempt}"
            attempt += 1
        return path

    def _prune(self, newest: Path) -> None:
        if self._keep:
            for path in self.list()[: -self._keep]:
                if path != newest:
                    (path / MANIFEST).unlink(missing_ok=True)  # first it is no checkpoint any more, then it goes
                    shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the newest of the run at `path`, verified.

    Raises CheckpointError naming what is missing or damaged.
    """
    if not (path / MANIFEST).is_file():
        found = CheckpointFolder(path / "checkpoints").list() or CheckpointFolder(path).list()
        if not found:
            raise CheckpointError(
                f"{path} is neither a checkpoint ({MANIFEST} is missing) nor a run with checkpoints in it"
            )
        path = found[-1]
    try:
        manifest = cast("dict[str, Any]", json.loads((path / MANIFEST).read_bytes()))
        version, files = manifest["format_version"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged: {error!r}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this release reads {FORMAT_VERSION}: use the release that wrote it"
        )
    for name, facts in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"{path / MANIFEST} names a file outside of the checkpoint: {name!r}")
        try:
            content = (path / name).read_bytes()
        except FileNotFoundError:
            raise CheckpointError(f"{path / name} is missing") from None
        if len(content) != facts["bytes"] or hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise CheckpointError(f"{path / name} is damaged: its size or hash is not what the manifest says")
    return Checkpoint(path=path, manifest=manifest)


def _order(path: Path) -> tuple[int, int]:
    epoch, _, attempt = path.name.partition("-")
    return int(epoch), int(attempt or 1)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
