"""The Python code of the documents, run as the programs that it is part of."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.documentation import Block, blocks_of, compiled, single_pages
from tests.documents.shortened import run_all_of
from tests.paths import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator import Trainer

pytestmark = pytest.mark.slow
DEADLINE = 200.0


def python_blocks() -> list[Block]:
    return [block for page in single_pages() for block in blocks_of(page) if block.language == "python"]


SERVICES = [block for block in python_blocks() if "uvicorn.run" in block.text]
"""What never ends by itself, and is asked for things by other tests."""
PROGRAMS = [block for block in python_blocks() if "__main__" in block.text and block not in SERVICES]
"""What the reader is to run as a program, by itself."""
PARTS: dict[str, list[Block]] = {}
"""All other code, by page, of which each has one program."""
for one in python_blocks():
    if one not in PROGRAMS + SERVICES:
        PARTS.setdefault(one.page, []).append(one)


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_a_program_of_the_documents_runs(block: Block, folder: Path) -> None:
    (folder / "program.py").write_text(block.text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "error", "-m", "tests.documents.shortened", "program.py"]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False, cwd=folder
    )
    assert result.returncode == 0, f"{block}:\n{result.stdout}{result.stderr}"
    assert "Traceback" not in result.stderr, result.stderr  # of a hook, which fails alone


@pytest.mark.parametrize("page", PARTS)
def test_the_code_of_a_page_runs_from_its_beginning_to_its_end(
    page: str, folder: Path, trainers: list[Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    names: dict[str, Any] = {"__name__": "documented"}
    for block in PARTS[page]:
        code, awaits = compiled("\n" * (block.line - 1) + block.text, page)
        cell: Any = eval(code, names)
        if awaits:
            asyncio.run(cell)
    run_all_of(names, trainers)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
