"""Everything that checkpoints do to a disk, in one place, so that tests can let each of it fail."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Bytes: TypeAlias = bytes | bytearray | memoryview
Content: TypeAlias = "Bytes | Iterable[Bytes]"
"""Of a file, as a whole or in pieces."""

_CHUNK = 4 * 1024 * 1024
_CACHED = 16 * 1024 * 1024
"""Bytes of a file that is being written that the system's file cache holds at most."""


class FileSystem:
    """The disk. What has been written is on it when a call returns; what was made, renamed or removed, after `sync`."""

    def make_folder(self, path: Path) -> None:
        path.mkdir()

    def write(self, path: Path, content: Content) -> tuple[int, str]:
        """Write a new file; its size in bytes and its SHA-256. Raises FileExistsError rather than overwrite."""
        digest, size, cached = hashlib.sha256(), 0, 0
        with path.open("xb", buffering=0) as file:
            for chunk in _chunks(content):
                written = 0
                while written < len(chunk):
                    written += file.write(chunk[written:])
                digest.update(chunk)  # while it is in the processor's cache
                size += len(chunk)
                cached += len(chunk)
                if cached >= _CACHED:
                    os.fsync(file.fileno())
                    drop_cached(file.fileno())
                    cached = 0
            os.fsync(file.fileno())
            drop_cached(file.fileno())
        return size, digest.hexdigest()

    def sync(self, folder: Path) -> None:
        """Put on disk what the folder's entries are."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        path.rmdir()


REAL = FileSystem()


def make_folders(files: FileSystem, path: Path) -> None:
    """Make a folder and those above it that are missing, so that they are on disk."""
    missing: list[Path] = []
    path = path.absolute()
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        try:
            files.make_folder(folder)
        except FileExistsError:
            if not folder.is_dir():  # or else another process was quicker
                raise
        files.sync(folder.parent)


def remove_tree(files: FileSystem, path: Path) -> None:
    """Remove a folder and all below it; links are removed, not followed."""
    for entry in list(os.scandir(path)):
        if entry.is_dir(follow_symlinks=False):
            remove_tree(files, Path(entry.path))
        else:
            files.unlink(Path(entry.path))
    files.remove_folder(path)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of an ordinary file: no link, which could lead anywhere, and no pipe, which could wait forever.

    Raises OSError; ELOOP for a link.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not an ordinary file", str(path))
    return descriptor


def read_regular(path: Path) -> bytes:
    with open(open_regular(path), "rb") as file:
        return file.read()


def drop_cached(descriptor: int, end: int = 0) -> None:
    """Let the system's file cache forget a file, until `end` (0: all of it), that has been written and synced, or read,
    and is not needed soon.

    Otherwise checkpoints push what is needed out of the cache, and the system takes a fresh page for each of theirs: in
    a virtual machine, which gets its memory from the host when it first touches it, that costs more than the writing.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # advice, no more: not all systems take it
            os.posix_fadvise(descriptor, 0, end, os.POSIX_FADV_DONTNEED)


def read_once(path: Path, size: int) -> Iterator[bytes]:
    """An ordinary file in pieces of `size` bytes, which the system's file cache forgets again."""
    with open(open_regular(path), "rb", buffering=0) as file:
        while piece := file.read(size):
            drop_cached(file.fileno(), file.tell())  # not what the system has read ahead
            yield piece


def hash_regular(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of an ordinary file, whatever its size in little memory."""
    with open(open_regular(path), "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def sync_if_possible(files: FileSystem, folder: Path) -> None:
    """Sync a folder that may belong to another user."""
    with contextlib.suppress(PermissionError, FileNotFoundError):
        files.sync(folder)


def _chunks(content: Content) -> Iterator[memoryview]:
    pieces = [content] if isinstance(content, (bytes, bytearray, memoryview)) else content
    for piece in pieces:
        view = memoryview(piece).cast("B")
        for begin in range(0, len(view), _CHUNK):
            yield view[begin : begin + _CHUNK]
