"""The commands of the documents, run in the order of the page by the real command, with trainings that end sooner."""

from __future__ import annotations

import importlib.metadata
import shlex
import shutil
import tomllib
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from orchestrator.checkpoints import CheckpointFolder
from orchestrator.checkpoints.objects import Objects
from orchestrator.checkpoints.remote import RemoteCheckpoints
from orchestrator.command.cli import run
from tests.documentation import Block, blocks_of, single_pages
from tests.machines import Machines
from tests.orchestrator.checkpoints.object_store_server import object_store_server
from tests.orchestrator.deployment.hub_server import hub_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

NOT_RUN = {
    "scripts/test.sh": "runs the tests, this one among them",
    "orchestrator train --device cuda": "needs a GPU",
    "ray start": "the tests have a cluster of their own",
    ".venv/bin/python -m pytest": "runs the tests, this one among them",
}
"""Commands by how they begin, and why they are not run here."""


def commands(block: Block) -> list[str]:
    """What follows the prompts, without comments; a line that ends in a backslash goes on in the next."""
    text = block.text.replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


def pages_with_commands() -> list[Path]:
    return [page for page in single_pages() if any(block.language == "console" for block in blocks_of(page))]


def test_what_is_not_run_is_still_in_the_documents() -> None:
    given = [
        line
        for page in single_pages()
        for block in blocks_of(page)
        if block.language == "console"
        for line in commands(block)
    ]
    assert given
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in given), f"no document has {start!r} any more"


@contextmanager
def services(lines: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the commands talk to, on loopback: `s3://bucket`, which has the run under the two addresses that documents
    use, the Hugging Face Hub, and a Ray cluster."""
    with ExitStack() as servers:
        if any("--cluster auto" in line for line in lines):
            monkeypatch.setenv("RAY_ADDRESS", servers.enter_context(closing(Machines(3))).address)
        if any("--push-to-hub" in line for line in lines):
            servers.enter_context(hub_server(monkeypatch, folder))
        if not any("s3://" in line for line in lines):
            yield
            return
        servers.enter_context(object_store_server(monkeypatch, "bucket"))
        run = folder / "runs" / "first"
        for address in ("s3://bucket/experiments/first", "s3://bucket/runs/first"):
            for path in CheckpointFolder(run / "checkpoints").list():
                RemoteCheckpoints(Objects(address)).upload(path, run / "config.toml")
        yield


def install_plugins(folder: Path, page: Path) -> None:
    """The package whose `pyproject.toml` the page shows is installed: its names are found, its code is `own.py`."""
    shown = [tomllib.loads(block.text) for block in blocks_of(page) if block.title == "pyproject.toml"]
    for table in shown:
        info = folder / "own-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
        points = table["project"]["entry-points"]
        lines = [
            f"[{group}]\n" + "\n".join(f"{name} = {code}" for name, code in names.items())
            for group, names in points.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        for group in points:
            assert all(callable(point.load()) for point in importlib.metadata.entry_points(group=group)), group


def code_of(words: list[str]) -> int | str:
    try:
        return run(words)
    except SystemExit as end:  # of --help
        return end.code or 0


def orchestrator(line: str, folder: Path) -> list[str]:
    """The words after `orchestrator` of a command, by whichever name it is called."""
    words = shlex.split(line, comments=True)
    program, rest = words[0], words[1:]
    assert program in ("orchestrator", ".venv/bin/orchestrator", "scripts/train.sh"), (
        f"no way to run {line!r} here: add one"
    )
    if program == "scripts/train.sh":
        rest = ["train", *rest]
    if "--run-dir" in rest:  # which the page is about to make
        shutil.rmtree(folder / rest[rest.index("--run-dir") + 1], ignore_errors=True)
    return rest


@pytest.mark.parametrize("page", pages_with_commands(), ids=lambda page: page.name)
def test_the_commands_of_a_page_can_be_given_one_after_another(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, short_trainings: None, capfd: pytest.CaptureFixture[str]
) -> None:
    install_plugins(folder, page)
    given = [(block, line) for block in blocks_of(page) if block.language == "console" for line in commands(block)]
    with services([line for _, line in given], folder, monkeypatch):
        for block, line in given:
            if not line.startswith(tuple(NOT_RUN)):
                assert code_of(orchestrator(line, folder)) == 0, f"{block}: {line}\n{capfd.readouterr().err}"
