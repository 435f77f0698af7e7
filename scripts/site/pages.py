"""Hooks of MkDocs: documents from the top of the project are pages of the site, and links between them lead there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

PROJECT = Path(__file__).resolve().parents[2]
TOP = {"README.md": "index.md"} | {name: name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE")}
"""Pages of the site, by the name that a document has at the top of the project."""


def on_files(files: Any, config: Any) -> Any:
    for name, page in TOP.items():
        files.append(File.generated(config, page, abs_src_path=str(PROJECT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that are right in the project, `docs/hooks.md` at its top and `../SECURITY.md` in docs/, for the site."""
    if page.file.src_uri in TOP.values():
        return re.sub(r"\]\(docs/", "](", markdown)
    up = "../" * (page.file.src_uri.count("/") + 1)  # to the top of the project
    for name, target in TOP.items():
        markdown = markdown.replace(f"]({up}{name}", f"]({up.removeprefix('../')}{target}")
    return markdown
