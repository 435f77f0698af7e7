"""Locks between processes that the kernel gives back when their holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from typing import TYPE_CHECKING

from orchestrator.checkpoints.filesystem import open_regular
from orchestrator.checkpoints.manifest import MANIFEST, CheckpointError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

RUN_LOCK = ".lock"

_log = logging.getLogger("orchestrator.checkpoints")
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}


@contextlib.contextmanager
def hold(path: Path) -> Generator[None]:
    """While entered, no retention of any process deletes the checkpoint at `path`.

    Raises CheckpointError where there is no such checkpoint (any more).
    """
    try:
        descriptor = open_regular(path / MANIFEST)
    except OSError as error:
        raise CheckpointError(f"{path} is no checkpoint: {MANIFEST} cannot be opened ({error.strerror})") from error
    try:
        _lock(descriptor, fcntl.LOCK_SH, path)
        if not os.fstat(descriptor).st_nlink:  # it was deleted between opening and locking
            raise CheckpointError(f"{path} is no checkpoint any more: it was removed just now")
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def unheld(path: Path) -> Generator[bool]:
    """For whoever deletes it: whether nobody holds the checkpoint; nobody can begin to while entered."""
    descriptor = open_regular(path / MANIFEST, os.O_RDWR)
    try:
        yield _try_lock(descriptor, path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def sole_writer(folder: Path) -> Generator[None]:
    """While entered, no other process commits to this folder. Raises CheckpointError where one does."""
    lock = folder / RUN_LOCK
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        if not _try_lock(descriptor, folder):
            raise CheckpointError(
                f"another run writes its checkpoints to {folder} ({_holder(descriptor)}): stop it, or choose another "
                "folder"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def writer_of(folder: Path) -> str | None:
    """Which process commits to this folder now; None where none does."""
    try:
        descriptor = open_regular(folder / RUN_LOCK)
    except OSError:
        return None
    try:
        return None if _try_lock(descriptor, folder, fcntl.LOCK_SH) else _holder(descriptor)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "process unknown"


def _try_lock(descriptor: int, path: Path, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        _lock(descriptor, kind | fcntl.LOCK_NB, path)
    except BlockingIOError:
        return False
    return True


def _lock(descriptor: int, kind: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("the file system of %s has no locks: nothing keeps two runs apart there", path)
