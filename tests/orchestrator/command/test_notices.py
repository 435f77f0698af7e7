"""What takes long at the start of a training, and what it needs, is on the terminal of its command."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from orchestrator.command.notices import notices_shown

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

SMALL = "--total-agent-steps 256 --collection.num-environments 4 --collection.horizon 16 --policy.hidden-sizes 4"
LOG = logging.getLogger("orchestrator.loop")


def shown_by(words: str, folder: Path) -> list[str]:
    """The lines on standard error of a training."""
    command = [sys.executable, "-m", "orchestrator", "train", *f"{SMALL} {words}".split(), "--run-dir", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return result.stderr.splitlines()


def test_a_training_says_what_memory_it_needs_and_that_it_compiles(tmp_path: Path) -> None:
    lines = shown_by("--learning.compile --collection.backend inline", tmp_path / "run")
    assert lines[0].startswith("torch compiles what the learner computes of the policy (learning.compile)")
    assert lines[1].startswith("compiled in ")
    assert lines[2].startswith("memory: in shared memory ")
    assert lines[3].startswith("epoch 1 ")


def test_a_training_without_progress_is_silent(tmp_path: Path) -> None:
    assert shown_by("--metrics.progress off", tmp_path / "run") == []


def without_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that has set up no logging; pytest has, just before the test's own code."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def test_notices_and_warnings_are_shown_once_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_handlers(monkeypatch)
    with notices_shown():
        LOG.debug("hidden")
        LOG.info("noticed")
        LOG.warning("warned of")
        logging.getLogger("another").info("hidden")
    LOG.info("hidden")
    assert capsys.readouterr().err.splitlines() == ["noticed", "warned of"]


@pytest.mark.parametrize("before", [True, False])
def test_logging_that_the_users_code_sets_up_says_what_is_shown(
    before: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_handlers(monkeypatch)
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    if before:
        logging.basicConfig(format="own: %(message)s")
    with notices_shown():
        if not before:
            logging.basicConfig(format="own: %(message)s", level=logging.INFO)
        LOG.info("noticed")
        LOG.warning("warned of")
    expected = ["own: warned of"] if before else ["own: noticed", "own: warned of"]
    assert capsys.readouterr().err.splitlines() == expected
