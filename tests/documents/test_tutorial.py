"""The tutorial, from an empty folder to its end: files are written, programs and commands run, as the text says."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from orchestrator.command.cli import run
from tests.documentation import Block, blocks_of
from tests.documents.test_command_blocks import commands
from tests.paths import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow
DEADLINE = 200.0
PAGES = ["train", "hook", "own", "resume", "service", "deploy"]
"""In the order of the tutorial's first page."""


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


class Reader:
    """Does what the text says, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.background: subprocess.Popen[str] | None = None

    def write(self, block: Block) -> None:
        (self.folder / block.title).write_text(block.text.replace("8000", self.port))

    def give(self, line: str) -> str:
        """Give a command, and read what it prints."""
        words = shlex.split(line.replace("8000", self.port), comments=True)
        match words:
            case ["orchestrator", *rest]:
                assert run(rest) == 0
                return ""
            case ["python", program, "&"]:
                self.background = self.start(program)
                return ""
            case ["python", program]:
                with self.start(program) as process:
                    output, errors = process.communicate(timeout=DEADLINE)
                assert process.returncode == 0, errors
                assert "Traceback" not in errors, errors
                return output
            case ["curl", *options, address]:
                return self.request(options[1] if options else "GET", address)
            case ["kill", "%1"]:
                self.end()
                return ""
            case _:
                raise AssertionError(f"no way to do {line!r} here: add one")

    def start(self, program: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-W", "error", "-m", "tests.documents.shortened", program]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def request(self, method: str, address: str) -> str:
        deadline = time.monotonic() + DEADLINE
        while True:
            assert self.background is not None
            assert self.background.poll() is None, self.background.communicate()[1]
            try:
                return httpx.request(method, address, timeout=DEADLINE).raise_for_status().text
            except httpx.ConnectError:  # the reader would wait until it says that it is there
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def end(self) -> None:
        if self.background is not None:
            self.background.send_signal(signal.SIGTERM)
            self.background.communicate(timeout=DEADLINE)
            assert self.background.returncode in (0, -signal.SIGTERM)
            self.background = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture
def reader(folder: Path, short_trainings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    reader = Reader(folder)
    yield reader
    reader.end()
    for module in ("announce", "solved", "heating"):
        sys.modules.pop(module, None)


def test_the_tutorials_pages_are_those_of_its_first_page() -> None:
    text = (PROJECT / "docs" / "tutorial" / "index.md").read_text()
    places = [text.index(f"]({page}.md)") for page in PAGES]
    assert places == sorted(places)
    assert {path.stem for path in (PROJECT / "docs" / "tutorial").iterdir()} == {"index", *PAGES}


def test_the_tutorial_can_be_followed_from_its_beginning_to_its_end(reader: Reader) -> None:
    printed: dict[str, list[str]] = {}
    for page in PAGES:
        printed[page] = []
        for block in blocks_of(PROJECT / "docs" / "tutorial" / f"{page}.md"):
            if block.language == "console":
                printed[page] += [reader.give(line) for line in commands(block)]
            else:
                assert block.title, f"{block}: nobody can run it"
                reader.write(block)
    assert "mean return of the last 100 episodes" in "".join(printed["train"])
    assert "done after" in "".join(printed["hook"])
    assert (reader.folder / "compare.html").is_file()
    assert '"status":"' in printed["service"][1]
    assert printed["service"][2] == '{"status":"stopping"}'
    assert "return" in printed["deploy"][0]
    assert printed["deploy"][-1].startswith("actions [")
