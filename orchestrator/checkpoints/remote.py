"""The checkpoints of a run in an object store.

<run>/config.toml                                the run's settings
<run>/checkpoints/<name>/manifest.json           written last: the checkpoint exists once this does
<run>/checkpoints/<name>/<attempt>/<file>        the files of one attempt to commit it
<run>/checkpoints/<name>/scores.json             scores of its policy that came later
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
import re
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.checkpoint import Checkpoint, open_checkpoint
from orchestrator.checkpoints.filesystem import REAL, make_folders, remove_tree
from orchestrator.checkpoints.folder import NAME, order
from orchestrator.checkpoints.locks import hold
from orchestrator.checkpoints.manifest import (
    MANIFEST,
    NAME_ANOTHER,
    SCORES,
    CheckpointDamaged,
    CheckpointError,
    CheckpointTooNew,
    in_folder,
    make_scores,
    parse_manifest,
    parse_scores,
)
from orchestrator.checkpoints.objects import PART, AlreadyThere, Objects, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from orchestrator.checkpoints.retention import Retention

CONFIG = "config.toml"

_FOLDER = "checkpoints/"
_ORPHAN_AGE = datetime.timedelta(days=1)
_log = logging.getLogger("orchestrator.checkpoints")


class RemoteCheckpoints:
    """The checkpoints below the address of a run. All of it blocks, for a bounded time.

    Raises CheckpointError, and StoreUnavailable where the store fails in a way that may pass.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def address(self, name: str) -> str:
        return f"{self.objects.address}/{_FOLDER}{name}"

    def upload(self, path: Path, config: Path | None = None) -> str:
        """Copy a local checkpoint, and the run's settings with it; the copy's address, once it is committed.

        It is held meanwhile, so that it is not deleted. A copy that is there already is left alone. Raises
        CheckpointError where another checkpoint of this name was committed first.
        """
        with hold(path):
            checkpoint = open_checkpoint(path)
            name, attempt = path.name, checkpoint.manifest["attempt"]
            if self._committed_attempt(name) is None:
                if config is not None and config.is_file():
                    self.objects.put(CONFIG, config.read_bytes)
                for file, facts in checkpoint.manifest["files"].items():
                    # Read once, and compared with the manifest meanwhile: rather no copy than a damaged one.
                    read = checkpoint.read if facts["bytes"] <= PART else checkpoint.pieces
                    self.objects.put(f"{_FOLDER}{name}/{attempt}/{file}", partial(read, file))
                with contextlib.suppress(AlreadyThere):  # by another writer, or by an attempt whose answer was lost
                    self.objects.create(f"{_FOLDER}{name}/{MANIFEST}", in_folder(checkpoint.manifest, attempt))
            winner = self._committed_attempt(name)
        if winner != attempt:
            with contextlib.suppress(StoreUnavailable):
                self._delete_below(f"{_FOLDER}{name}/{attempt}/")
            raise CheckpointError(
                f"{self.address(name)} is another checkpoint of that name, committed before: let the run upload to "
                "its own address"
            )
        return self.address(name)

    def upload_scores(self, path: Path) -> bool:
        """Copy the scores that came after a local checkpoint was committed, if there are any, to its copy."""
        if not (path / SCORES).is_file():
            return False
        checkpoint = open_checkpoint(path)
        if self._committed_attempt(path.name) != checkpoint.manifest["attempt"]:
            return False
        content = make_scores(checkpoint.manifest, checkpoint.scores)
        self.objects.put(f"{_FOLDER}{path.name}/{SCORES}", lambda: content)
        return True

    def list(self) -> list[str]:
        """The names of the committed checkpoints, oldest first."""
        return _committed(listed.key for listed in self.objects.list(_FOLDER))

    def open(self, name: str) -> Checkpoint:
        """A checkpoint's manifest; its files are not here, so only `manifest` is of use."""
        stored = self.objects.get(f"{_FOLDER}{name}/{MANIFEST}")
        if stored is None:
            raise CheckpointError(f"{self.address(name)} is not there")
        manifest = parse_manifest(stored, self.address(name))
        return Checkpoint(path=Path(name), manifest=manifest, scores=self._scores(name, manifest))

    def verify(self, name: str) -> None:
        """Read all of a checkpoint and compare it with its manifest. Raises CheckpointDamaged."""
        checkpoint = self.open(name)
        for file in checkpoint.manifest["files"]:
            size, sha256 = 0, hashlib.sha256()
            for piece in self._file(checkpoint, file):
                size += len(piece)
                sha256.update(piece)
            self._compare(checkpoint, file, size, sha256.hexdigest())

    def newest_valid(self, cache: Path | None = None) -> Checkpoint:
        """The newest checkpoint that can be read whole, copied to this machine. Damaged ones are logged."""
        passed_over: dict[str, CheckpointError] = {}
        while unseen := [name for name in self.list() if name not in passed_over]:
            name = unseen[-1]
            try:
                checkpoint = self.download(name, cache)
                for other in self._unfinished():
                    if order(other) > order(name):
                        _log.warning(
                            "checkpoint %s, which is newer, is passed over: it has no %s, which is written last",
                            self.address(other),
                            MANIFEST,
                        )
                return checkpoint
            except (CheckpointTooNew, StoreUnavailable):
                raise
            except CheckpointError as error:
                # Looking again, since one that was deleted meanwhile is replaced by a newer one.
                _log.error("checkpoint %s is passed over: %s", self.address(name), error)
                passed_over[name] = error
        reasons = "".join(f"; {error}" for error in passed_over.values())
        raise CheckpointError(
            f"{self.objects.address} has no valid checkpoint{reasons}; name a checkpoint of another run, or begin a new"
            " run with another address to upload to"
        )

    def download(self, name: str, cache: Path | None = None) -> Checkpoint:
        """A verified copy of a checkpoint on this machine, in the layout of a run's folder.

        It is below `cache` (by default `orchestrator` in $XDG_CACHE_HOME or ~/.cache), and used again next time.
        """
        remote = self.open(name)
        attempt: str = remote.manifest["attempt"]
        place = (_cache() if cache is None else cache) / _key(self.objects.address)
        final = place / attempt / "checkpoints" / name
        if final.exists():
            try:
                copy = open_checkpoint(final)
                copy.verify()
            except CheckpointError:
                remove_tree(REAL, place / attempt)
            else:
                return copy
        try:
            working = place / f".writing-{uuid.uuid4().hex}"
            try:
                self._fetch(remote, working, working / "checkpoints" / name)
                try:
                    working.rename(place / attempt)
                except OSError:
                    if not final.exists():  # or else another process was quicker
                        raise
            finally:
                if working.exists():
                    remove_tree(REAL, working)
        except OSError as error:
            if isinstance(error, StoreUnavailable):
                raise
            raise CheckpointError(
                f"{self.address(name)} cannot be copied to {place}: {error.strerror or error}; XDG_CACHE_HOME says "
                "where copies go"
            ) from error
        copy = open_checkpoint(final)
        copy.verify()
        return copy

    def prune(self, retention: Retention, *, dry_run: bool = False) -> list[str]:
        """Delete what `retention` does not want, never the newest valid one, and day-old remains of uploads.

        Gives the names, with `dry_run` without deleting. Reads the newest until it finds the newest valid one.
        """
        listed = self.objects.list(_FOLDER)
        names = _committed(entry.key for entry in listed)
        checkpoints: list[Checkpoint] = []
        for name in names:
            try:
                checkpoints.append(self.open(name))
            except StoreUnavailable:
                raise
            except CheckpointError as error:
                _log.warning("retention leaves a checkpoint alone that cannot be read: %s", error)
        newest = next((checkpoint.path for checkpoint in reversed(checkpoints) if self._is_valid(checkpoint)), None)
        kept = retention.wanted(checkpoints) | {newest}
        unwanted = [checkpoint.path.name for checkpoint in checkpoints if checkpoint.path not in kept]
        if dry_run:
            return unwanted
        for name in unwanted:
            self.objects.delete(f"{_FOLDER}{name}/{MANIFEST}")  # first it is no checkpoint any more, then it goes
            self._delete_below(f"{_FOLDER}{name}/")
        attempts = {checkpoint.path.name: checkpoint.manifest["attempt"] for checkpoint in checkpoints}
        oldest = datetime.datetime.now(datetime.UTC) - _ORPHAN_AGE
        for entry in listed:
            name, _, rest = entry.key.removeprefix(_FOLDER).partition("/")
            unfinished = name not in names or (name in attempts and not rest.startswith(f"{attempts[name]}/"))
            in_use = rest == MANIFEST or (rest == SCORES and name in names)
            if unfinished and not in_use and name not in unwanted and entry.written < oldest:
                self.objects.delete(entry.key)
        return unwanted

    def _scores(self, name: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        key = f"{_FOLDER}{name}/{SCORES}"
        stored = self.objects.get(key)
        try:
            return {} if stored is None else parse_scores(stored, manifest, f"{self.objects.address}/{key}")
        except CheckpointDamaged as error:
            _log.warning("the scores of a checkpoint are left out: %s", error)
            return {}

    def _unfinished(self) -> set[str]:
        """Names below which there are files, and no manifest."""
        keys = [listed.key.removeprefix(_FOLDER).partition("/") for listed in self.objects.list(_FOLDER)]
        named = {name for name, _, rest in keys if rest and NAME.fullmatch(name)}
        return named - {name for name, _, rest in keys if rest == MANIFEST}

    def _is_valid(self, checkpoint: Checkpoint) -> bool:
        try:
            self.verify(checkpoint.path.name)
        except StoreUnavailable:
            raise
        except CheckpointError:
            return False
        return True

    def _committed_attempt(self, name: str) -> str | None:
        stored = self.objects.get(f"{_FOLDER}{name}/{MANIFEST}")
        return None if stored is None else parse_manifest(stored, self.address(name))["attempt"]

    def _fetch(self, remote: Checkpoint, root: Path, target: Path) -> None:
        make_folders(REAL, target)
        for file in remote.manifest["files"]:
            self._compare(remote, file, *REAL.write(target / file, self._file(remote, file)))
        if remote.scores:
            REAL.write(target / SCORES, make_scores(remote.manifest, remote.scores))
        REAL.write(target / MANIFEST, in_folder(remote.manifest, None))
        config = self.objects.get(CONFIG)
        if config is not None:
            REAL.write(root / CONFIG, config)

    def _file(self, checkpoint: Checkpoint, file: str) -> Iterator[bytes]:
        folder = checkpoint.manifest.get("folder")
        key = f"{_FOLDER}{checkpoint.path.name}/{f'{folder}/' if folder else ''}{file}"
        expected, size = checkpoint.manifest["files"][file]["bytes"], self.objects.size(key)
        if size is None:
            raise CheckpointDamaged(f"{self.objects.address}/{key} is missing")
        if size != expected:
            raise CheckpointDamaged(
                f"{self.objects.address}/{key} is damaged: it has {size} bytes instead of {expected}"
            )
        yield from self.objects.read(key, size)

    def _compare(self, checkpoint: Checkpoint, file: str, size: int, sha256: str) -> None:
        expected = checkpoint.manifest["files"][file]
        if (size, sha256) != (expected["bytes"], expected["sha256"]):
            address = self.address(checkpoint.path.name)
            raise CheckpointDamaged(f"{file} of {address} is damaged: its hash is not what the manifest says")

    def _delete_below(self, prefix: str) -> None:
        for entry in self.objects.list(prefix):
            self.objects.delete(entry.key)


def find_remote(address: str, cache: Path | None = None) -> Checkpoint:
    """The checkpoint at an address, or the newest valid one of the run there, verified, on this machine."""
    run, name = run_and_name(address)
    remote = RemoteCheckpoints(Objects(run))
    if name is not None:
        try:
            return remote.download(name, cache)
        except CheckpointDamaged as error:
            raise CheckpointDamaged(f"{error}; {NAME_ANOTHER}") from error
    if not remote.list():
        raise CheckpointError(
            f"{run} has no checkpoints: give the address of a run (which has checkpoints/ below it), or of one of its "
            "checkpoints"
        )
    return remote.newest_valid(cache)


def run_and_name(address: str) -> tuple[str, str | None]:
    """The address of a run, and the checkpoint's name where the address is that of one checkpoint."""
    address = address.rstrip("/").removesuffix(f"/{MANIFEST}")
    run, separator, name = address.rpartition(f"/{_FOLDER}")
    if separator and NAME.fullmatch(name):
        return run, name
    return address.removesuffix("/checkpoints"), None


def _committed(keys: Iterable[str]) -> list[str]:
    pattern = re.compile(rf"{_FOLDER}({NAME.pattern})/{re.escape(MANIFEST)}")
    found = [match[1] for key in keys if (match := pattern.fullmatch(key))]
    return sorted(found, key=order)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "orchestrator"


def _key(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:16]
