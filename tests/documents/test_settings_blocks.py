"""The settings of the documents, read and trained with by the real command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orchestrator.command.cli import run
from tests.documentation import Block, blocks_of, pages, single_pages

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

SETTINGS = [
    block
    for page in single_pages()
    for block in blocks_of(page)
    if block.language == "toml" and block.title != "pyproject.toml"
]
NO_CODE = {"", "text"}
"""Blocks of these languages are drawings, listings of files, or output."""
RUN = {
    "python": "test_python_blocks.py",
    "console": "test_command_blocks.py",
    "toml": "this file, but for a pyproject.toml, which test_command_blocks.py installs",
}
"""Where the blocks of a language are run."""


@pytest.mark.parametrize("block", SETTINGS, ids=str)
def test_a_run_takes_the_settings_of_the_documents(
    block: Block, folder: Path, short_trainings: None, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "settings.toml").write_text(block.text)
    assert run(["train", "--config", "settings.toml"]) == 0, f"{block}:\n{capfd.readouterr().err}"


def test_every_block_of_the_documents_is_of_a_language_that_is_run() -> None:
    for page in pages():
        for block in blocks_of(page):
            assert block.language in RUN.keys() | NO_CODE, f"{block}: how is {block.language!r} to be run?"
            if block.language in NO_CODE:
                assert "\n$ " not in f"\n{block.text}", f"{block}: commands belong into a block of `console`"
                assert "import " not in block.text, f"{block}: Python code belongs into a block of `python`"
