"""The checkpoints of one run on disk: written to a temporary folder, committed by one rename, deleted by rules."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import uuid
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.checkpoint import Checkpoint, is_valid, open_checkpoint
from orchestrator.checkpoints.filesystem import REAL, make_folders, remove_tree, sync_if_possible
from orchestrator.checkpoints.locks import hold, sole_writer, unheld
from orchestrator.checkpoints.manifest import (
    MANIFEST,
    SCORES,
    CheckpointDamaged,
    CheckpointError,
    CheckpointTooNew,
    is_plain_name,
    make_manifest,
    make_scores,
)
from orchestrator.checkpoints.retention import KeepAll

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
    from pathlib import Path

    from orchestrator.checkpoints.filesystem import Content, FileSystem
    from orchestrator.checkpoints.retention import Retention

NAME = re.compile(r"\d{1,18}(-\d{1,9})?")

_UNFINISHED, _DAMAGED, _SUPERSEDED = ".writing-", ".damaged-", ".superseded-"
_ORPHAN_SECONDS = 3600.0
_KEEP_ALL = KeepAll()
_log = logging.getLogger("orchestrator.checkpoints")


class CheckpointFolder:
    """The checkpoints of one run, one folder each, named by epoch; none is ever overwritten.

    After each commit those are deleted that `retention` does not want, but never the newest, one in `protect` (say,
    that which the run was resumed from), or one that is being read. What a killed run left unfinished goes once it
    is `orphan_seconds` old. All of it blocks.
    """

    def __init__(
        self,
        path: Path,
        *,
        retention: Retention = _KEEP_ALL,
        protect: Iterable[Path] = (),
        orphan_seconds: float = _ORPHAN_SECONDS,
        files: FileSystem = REAL,
    ) -> None:
        self.path = path
        self.retention = retention
        self.protect = {protected.absolute() for protected in protect}
        self._orphan_seconds = orphan_seconds
        self._files = files
        self._claimed = False
        self._anchored = False
        self._opened: dict[Path, Checkpoint] = {}  # only its scores ever change

    @contextlib.contextmanager
    def claim(self) -> Generator[None]:
        """While entered, no other run commits here. Raises CheckpointError where one does.

        A commit without it claims the folder for as long as it takes.
        """
        if self._claimed:
            yield
            return
        try:
            self._make()
            lock = contextlib.ExitStack()
            lock.enter_context(sole_writer(self.path))
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self.path}: {error.strerror}; choose another folder, or make this "
                "one writable"
            ) from error
        with lock:
            self._claimed = True
            try:
                yield
            finally:
                self._claimed = False

    def commit(
        self,
        *,
        epoch: int,
        facts: Mapping[str, Any],
        files: Mapping[str, Content],
        parent: str | None = None,
        awaited: Collection[int] = (),
    ) -> Path:
        """Write a checkpoint: it exists, whole and on disk, once this returns, or not at all.

        `facts` are JSON and go into the manifest; of `metrics`, a table of numbers, `KeepBest` takes its own.
        `parent` names the checkpoint that the run continued from. Checkpoints of the epochs in `awaited` stay: their
        scores are yet to come. Raises CheckpointError: no space, no permission, another run in this folder, a later
        epoch in it.
        """
        if epoch < 0:
            raise CheckpointError(f"a checkpoint's epoch must be at least 0, not {epoch}")
        for name in files:
            if not is_plain_name(name) or name in (MANIFEST, SCORES):
                raise CheckpointError(f"{name!r} cannot be the name of a file in a checkpoint")
        with self.claim():
            newest = next(reversed(self.list()), None)
            if newest is not None and order(newest.name)[0] > epoch:
                raise CheckpointError(
                    f"{self.path} holds {newest.name}, of a later epoch than {epoch}, which would be taken for newer: "
                    "call `rewind` first, or continue the run in its own folder"
                )
            try:
                final = self._write(epoch, facts, files, parent)
            except OSError as error:
                raise CheckpointError(
                    f"the checkpoint of epoch {epoch} cannot be written to {self.path}: {error.strerror}; the "
                    "checkpoints before it are as they were"
                ) from error
            try:
                self._prune(final, awaited=awaited)
            except OSError as error:
                _log.warning("%s is committed, but old checkpoints cannot be deleted: %s", final, error)
        return final

    def list(self) -> list[Path]:
        """The committed checkpoints, oldest first."""
        found = [self.path / name for name in self._names() if (self.path / name / MANIFEST).is_file()]
        return sorted(found, key=lambda path: order(path.name))

    def used(self) -> bool:
        """Whether there are, or were, checkpoints here. (While a run deletes them, `list` may miss all it has.)"""
        return bool(self._names())

    def newest_valid(self) -> Checkpoint:
        """The newest checkpoint whose every byte is as it was written.

        Damaged ones are moved aside, never deleted, with an error in the log. Raises CheckpointError where no valid
        one is left, and for one of a later release, which should not be passed over for an older one.
        """
        passed_over: dict[str, None] = {}
        while True:
            before = self._names()
            for path in reversed(self.list()):
                try:
                    with hold(path):
                        checkpoint = open_checkpoint(path)
                        checkpoint.verify()
                        for other, reason in self._without_manifest():
                            if order(other.name) > order(path.name):
                                _log.warning("checkpoint %s, which is newer, is passed over: %s", other, reason)
                        return checkpoint
                except CheckpointTooNew:
                    raise
                except CheckpointError as error:
                    if os.path.lexists(path / MANIFEST):
                        passed_over[str(error)] = None
                        self._pass_over(path, error)
            if self._names() == before:  # or else a run commits and deletes here: there is a newer one
                passed_over |= {f"{path}: {reason}": None for path, reason in self._without_manifest()}
                reasons = "".join(f"; {reason}" for reason in passed_over)
                raise CheckpointError(
                    f"{self.path} has no valid checkpoint{reasons}; name a checkpoint of another run, or begin a new"
                    " run in another folder"
                )

    def hold(self, path: Path) -> contextlib.AbstractContextManager[None]:
        """While entered, no run deletes the checkpoint. Raises CheckpointError where there is none (any more)."""
        return hold(path)

    def rewind(self, path: Path) -> list[Path]:
        """Move the checkpoints that are newer than `path` aside, so that a run can resume from there; where to."""
        with self.claim():
            newer = [other for other in self.list() if order(other.name) > order(path.name)]
            return [self._move_aside(other, _SUPERSEDED) for other in reversed(newer)]

    def prune(self, *, dry_run: bool = False) -> list[Path]:
        """Delete what nobody wants, and old remains; gives what was deleted, or with `dry_run` what would be.

        Reads the newest checkpoints until it finds the newest valid one. What cannot be deleted stays, with a warning
        in the log.
        """
        with self.claim():
            newest = next((checkpoint.path for checkpoint in reversed(self._all()) if is_valid(checkpoint)), None)
            return self._prune(newest, dry_run=dry_run)

    def score(self, scores: Mapping[int, Mapping[str, Any]]) -> list[Path]:
        """Write metrics that came late, by policy version, next to the checkpoints of those policies that have none of
        these names; which they are. What can't be written is left out, with a warning in the log."""
        scored: list[Path] = []
        with self.claim():
            for checkpoint in self._all():
                metrics = scores.get(checkpoint.manifest.get("policy_version", -1))
                if metrics is None or metrics.keys() <= checkpoint.metrics.keys():
                    continue
                draft = self.path / f"{_UNFINISHED}{SCORES}"
                try:
                    with contextlib.suppress(FileNotFoundError):
                        self._files.unlink(draft)
                    self._files.write(draft, make_scores(checkpoint.manifest, metrics))
                    self._files.rename(draft, checkpoint.path / SCORES)
                    self._files.sync(checkpoint.path)
                except OSError as error:
                    _log.warning("the scores of %s, which came late, cannot be written: %s", checkpoint.path, error)
                    continue
                self._opened.pop(checkpoint.path, None)
                scored.append(checkpoint.path)
        return scored

    def _prune(self, newest: Path | None, *, dry_run: bool = False, awaited: Collection[int] = ()) -> list[Path]:
        checkpoints = self._all()
        kept = self.retention.wanted(checkpoints) | {newest}
        kept |= {checkpoint.path for checkpoint in checkpoints if checkpoint.epoch in awaited}
        paths = [checkpoint.path for checkpoint in checkpoints]
        unwanted = [path for path in paths if path not in kept and path.absolute() not in self.protect]
        if dry_run:
            return unwanted
        deleted = [path for path in unwanted if self._delete_if_free(path)]
        self._sweep()
        return deleted

    def _all(self) -> list[Checkpoint]:
        """Those whose manifests can be read."""
        return [checkpoint for path in self.list() if (checkpoint := self._open(path)) is not None]

    # Committing.

    def _make(self) -> None:
        make_folders(self._files, self.path)
        if not self._anchored:
            # The folder may be new, and its maker may not have synced it: what is in it would be lost with it.
            sync_if_possible(self._files, self.path.absolute().parent)
            sync_if_possible(self._files, self.path.absolute().parent.parent)
            self._anchored = True

    def _write(self, epoch: int, facts: Mapping[str, Any], files: Mapping[str, Content], parent: str | None) -> Path:
        attempt = uuid.uuid4().hex
        # On the same file system, so that the rename is atomic; a name that is never taken for a checkpoint.
        working = self.path / f"{_UNFINISHED}{attempt}"
        make_folders(self._files, self.path)
        try:
            self._files.make_folder(working)
            described: dict[str, dict[str, Any]] = {}
            for name, content in files.items():
                size, sha256 = self._files.write(working / name, content)
                described[name] = {"bytes": size, "sha256": sha256}
            manifest = make_manifest(facts, described, epoch=epoch, attempt=attempt, parent=parent)
            self._files.write(working / MANIFEST, manifest)
            self._files.sync(working)
            final = self._free_name(epoch)
            self._files.rename(working, final)
        except BaseException:
            with contextlib.suppress(OSError):
                remove_tree(self._files, working)
            raise
        self._files.sync(self.path)
        return final

    def _names(self) -> set[str]:
        try:
            return {path.name for path in self.path.iterdir() if NAME.fullmatch(path.name)}
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except PermissionError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error

    def _without_manifest(self) -> Iterator[tuple[Path, str]]:
        """What is named as a checkpoint is and is none, and why."""
        for path in sorted(map(self.path.joinpath, self._names()), key=lambda path: order(path.name)):
            if not (path / MANIFEST).is_file():
                odd = os.path.lexists(path / MANIFEST)
                yield path, f"its {MANIFEST} is no file" if odd else f"it has no {MANIFEST}, which is written last"

    def _free_name(self, epoch: int) -> Path:
        path = self.path / f"{epoch:08d}"
        number = 2
        while path.exists() or path.is_symlink():
            path = self.path / f"{epoch:08d}-{number}"
            number += 1
        return path

    # Deleting and moving aside.

    def _open(self, path: Path) -> Checkpoint | None:
        if path not in self._opened:
            try:
                self._opened[path] = open_checkpoint(path)
            except CheckpointError as error:
                _log.warning("retention leaves a checkpoint alone that cannot be read: %s", error)
                return None
        return self._opened[path]

    def _delete_if_free(self, path: Path) -> bool:
        try:
            with unheld(path) as free:
                if not free:
                    return False
                # First it is no checkpoint any more, also after a power failure, then it goes.
                self._files.unlink(path / MANIFEST)
                self._files.sync(path)
            self._opened.pop(path, None)
            remove_tree(self._files, path)
        except OSError as error:
            _log.warning("an old checkpoint cannot be deleted: %s", error)
            return False
        return True

    def _sweep(self) -> None:
        """Remove what never became a checkpoint, or is none any more, and that nobody is at work on."""
        oldest = time.time() - self._orphan_seconds
        for path in self.path.iterdir():
            unfinished = path.name.startswith(_UNFINISHED)
            uncommitted = NAME.fullmatch(path.name) and path.is_dir() and not (path / MANIFEST).exists()
            with contextlib.suppress(OSError):
                if (unfinished or uncommitted) and not path.is_symlink() and path.stat().st_mtime <= oldest:
                    if path.is_dir():
                        # A manifest that was deleted must not come back by a power failure when the rest is gone.
                        self._files.sync(path)
                        remove_tree(self._files, path)
                    else:
                        self._files.unlink(path)

    def _pass_over(self, path: Path, error: CheckpointError) -> None:
        if not isinstance(error, CheckpointDamaged):
            _log.error("checkpoint %s is passed over: %s", path, error)
            return
        try:
            aside = self._move_aside(path, _DAMAGED)
        except OSError as failure:
            _log.error("checkpoint %s is DAMAGED and cannot be moved aside (%s): %s", path, failure.strerror, error)
        else:
            _log.error("checkpoint %s is DAMAGED and was moved aside, to %s: %s", path, aside, error)

    def _move_aside(self, path: Path, prefix: str) -> Path:
        aside = path.with_name(f"{prefix}{path.name}-{uuid.uuid4().hex[:8]}")
        self._files.rename(path, aside)
        self._files.sync(self.path)
        self._opened.pop(path, None)
        return aside


def order(name: str) -> tuple[int, int]:
    """By which the names of checkpoints are sorted, oldest first."""
    epoch, _, number = name.partition("-")
    return int(epoch), int(number or 1)
