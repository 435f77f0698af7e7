"""The code that the documents show."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.paths import PROJECT

if TYPE_CHECKING:
    from pathlib import Path
    from types import CodeType

_FENCED = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    page: str
    """Path of the document in the project."""
    line: int
    """Where the text begins, counted from 1."""
    language: str
    title: str
    """Name of the file that the reader is to write it to; empty for none."""
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every document that users and contributors read, but for the list of changes."""
    return sorted({*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")} - {PROJECT / "CHANGELOG.md"})


def single_pages() -> list[Path]:
    """Those that can be read alone: not the pages of the tutorial, of which each goes on where the one before ends."""
    return [page for page in pages() if page.parent.name != "tutorial"]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            page=str(page.relative_to(PROJECT)),
            line=text.count("\n", 0, found.start()) + 2,
            language=found[2].partition(" ")[0],
            title=next(iter(re.findall(r'title="([^"]+)"', found[2])), ""),
            text=textwrap.dedent(found[3]),
        )
        for found in _FENCED.finditer(text)
    ]


def text_of(name: str) -> str:
    return (PROJECT / "docs" / name).read_text()


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```python[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def compiled(code: str, name: str) -> tuple[CodeType, bool]:
    """`code`, and whether it is a notebook's cell that awaits: evaluating it then gives a coroutine."""
    found: CodeType = compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return found, bool(found.co_flags & inspect.CO_COROUTINE)
