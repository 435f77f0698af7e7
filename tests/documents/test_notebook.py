"""The example notebook, executed by a real kernel."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.paths import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # in the client's own libraries
]
NOTEBOOK = PROJECT / "scripts" / "examples" / "notebook.ipynb"
DEADLINE = 200


class Reader(NotebookClient):
    """Executes the cells, and notes the pictures that are shown while they are at work."""

    seen: list[str]
    on_picture: Callable[[], None]

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.seen.append(msg["content"]["data"].get("image/svg+xml", ""))
            self.on_picture()
        return super().process_message(msg, cell, cell_index)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "of-jupyter"))
    text = NOTEBOOK.read_text()
    assert "total_agent_steps=200_000" in text
    shorter = nbformat.reads(text.replace("total_agent_steps=200_000", "total_agent_steps=30_000"), as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    reader = Reader(shorter, timeout=DEADLINE, kernel_name="python3", resources=resources)
    reader.seen, reader.on_picture = [], lambda: None
    return reader


def output_of(reader: Reader, cell: str) -> str:
    (found,) = [one for one in reader.nb.cells if one.id == cell]
    return "".join(output.get("text", "") or output["data"]["text/plain"] for output in found.outputs)


def points(picture: str) -> int:
    found = re.search(r'points="([^"]*)"', picture)
    assert found is not None
    return len(found[1].split())


def test_the_notebook_trains_in_its_cells_and_its_curve_grows_meanwhile(reader: Reader) -> None:
    reader.execute()
    counts = [points(picture) for picture in reader.seen]
    assert counts == list(range(len(counts))), "a point more with each picture"
    assert len(counts) > 5
    assert reader.nb.cells[3].id == "train"
    assert output_of(reader, "stop").startswith("ended after")
    assert "running" in output_of(reader, "look")
    assert output_of(reader, "act").startswith("np.int64(")


def test_interrupting_the_kernel_cancels_the_training_and_leaves_no_worker(reader: Reader) -> None:
    reader.nb = nbformat.from_dict(dict(reader.nb) | {"cells": reader.nb.cells[:4]})
    reader.nb.cells[3].source = reader.nb.cells[3].source.replace("30_000", "30_000_000")
    reader.nb.cells[3].source += "\nprint('went on')"
    interrupted = threading.Event()
    family: list[psutil.Process] = []

    def interrupt() -> None:
        if len(reader.seen) == 5 and not interrupted.is_set():
            interrupted.set()
            assert reader.km is not None
            family.extend(psutil.Process(reader.km.provisioner.pid).children(recursive=True))
            os.kill(reader.km.provisioner.pid, signal.SIGINT)  # as the button does

    reader.on_picture = interrupt
    with pytest.raises(CellExecutionError, match="CancelledError|KeyboardInterrupt|CtrlC"):
        reader.execute()
    assert interrupted.is_set()
    assert "went on" not in str(reader.nb.cells[3].outputs)
    _, alive = psutil.wait_procs(family, timeout=DEADLINE)
    assert family
    assert alive == []
