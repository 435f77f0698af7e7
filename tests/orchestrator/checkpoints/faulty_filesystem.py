"""A disk that stops at a chosen operation, fails at one, and forgets what was not synced."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.checkpoints.filesystem import FileSystem

if TYPE_CHECKING:
    import random
    from pathlib import Path


MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""For `dir` of temporary folders: where a power failure is only played, no real disk need be waited for."""


class Stop(BaseException):
    """The power has failed."""


@dataclass(eq=False)
class Node:
    """A file or folder: what programs see, and what is certain to be there after a power failure."""

    folder: bool
    entries: dict[str, Node] = field(default_factory=dict)
    synced_entries: dict[str, Node] = field(default_factory=dict)
    content: bytes = b""
    synced: bool = False


class FaultyFileSystem(FileSystem):
    """The real disk below `root`, and a model of it that knows what would survive.

    Operation number `stop_at` does not happen any more, nor does any later one; operation `fail_at` fails with
    `error`. A write is several operations.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations = 0
        self.stop_at: int | None = None
        self.fail_at: int | None = None
        self.error = errno.ENOSPC
        self._tree = Node(folder=True)

    def make_folder(self, path: Path) -> None:
        self._begin(path)
        super().make_folder(path)
        self._parent(path).entries[path.name] = Node(folder=True)

    def write(self, path: Path, content):
        data = bytes(content)
        self._begin(path)
        with path.open("xb"):
            node = self._parent(path).entries[path.name] = Node(folder=False)
        for size in (len(data) // 2, len(data)):
            self._begin(path)
            node.content = data[:size]
            path.write_bytes(node.content)
        self._begin(path)
        node.synced = True
        import hashlib

        return len(data), hashlib.sha256(data).hexdigest()

    def sync(self, folder: Path) -> None:
        self._begin(folder)
        if folder.is_relative_to(self.root):
            node = self._node(folder)
            node.synced_entries = dict(node.entries)

    def rename(self, source: Path, target: Path) -> None:
        self._begin(source)
        super().rename(source, target)
        self._parent(target).entries[target.name] = self._parent(source).entries.pop(source.name)

    def unlink(self, path: Path) -> None:
        self._begin(path)
        super().unlink(path)
        self._parent(path).entries.pop(path.name, None)

    def remove_folder(self, path: Path) -> None:
        self._begin(path)
        super().remove_folder(path)
        self._parent(path).entries.pop(path.name, None)

    def restart(self, chance: random.Random) -> None:
        """The power fails, and comes back: of what was not synced, any part is there and any is not."""
        self._tree = self._survivor(self._tree, chance)
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._lay_out(self._tree, self.root)
        self.operations, self.stop_at, self.fail_at = 0, None, None

    def _survivor(self, node: Node, chance: random.Random) -> Node:
        if not node.folder:
            content = node.content
            if not node.synced:
                length = chance.randint(0, len(content))
                content = content[:length] if chance.random() < 0.5 else bytes(length)
            return Node(folder=False, content=content, synced=True)
        entries: dict[str, Node] = {}
        for name in sorted(node.entries.keys() | node.synced_entries.keys()):
            found = chance.choice((node.entries, node.synced_entries)).get(name)
            if found is not None:
                entries[name] = self._survivor(found, chance)
        return Node(folder=True, entries=entries, synced_entries=dict(entries))

    def _lay_out(self, node: Node, path: Path) -> None:
        for name, entry in node.entries.items():
            if entry.folder:
                (path / name).mkdir()
                self._lay_out(entry, path / name)
            else:
                (path / name).write_bytes(entry.content)

    def _begin(self, path: Path) -> None:
        self.operations += 1
        if self.stop_at is not None and self.operations >= self.stop_at:
            raise Stop
        if self.operations == self.fail_at:
            raise OSError(self.error, os.strerror(self.error), str(path))

    def _node(self, path: Path) -> Node:
        node = self._tree
        for name in path.relative_to(self.root).parts:
            node = node.entries[name]
        return node

    def _parent(self, path: Path) -> Node:
        return self._node(path.parent)
