"""A user's own `losses` or `state`, where Python finds it before the packages that come with orchestrator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.__main__ import main
from tests.paths import PROJECT

pytestmark = pytest.mark.slow

TRAIN = """
import anyio
from orchestrator import CollectionConfig, Trainer, TrainerConfig
if __name__ == "__main__":
    config = TrainerConfig(total_agent_steps=256, collection=CollectionConfig(num_environments=4, horizon=32))
    print(anyio.run(Trainer(config).run).epoch)
"""


def python(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}  # where the folder of the script comes first
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)


def write(folder: Path, file: str) -> Path:
    """A module that leaves a mark when it is run."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"open({str(folder / 'was-run')!r}, 'w').close()\n")
    return path


@pytest.mark.parametrize("file", ["losses.py", "state.py", "losses/__init__.py", "state/__init__.py"])
def test_a_file_that_hides_our_packages_is_named_with_the_cure_when_orchestrator_is_imported(
    tmp_path: Path, file: str
) -> None:
    hiding = write(tmp_path, file)
    script = tmp_path / "train.py"
    script.write_text("import orchestrator\nprint('imported')\n")
    result = python(script, folder=tmp_path)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {hiding} hides the package")
    assert "rename it" in last
    assert not result.stdout
    assert not (tmp_path / "was-run").exists()


def test_a_module_that_is_imported_already_is_named_too(tmp_path: Path) -> None:
    hiding = write(tmp_path, "state.py")
    result = python("-c", "import state\nfrom orchestrator import Trainer", folder=tmp_path)
    assert f"ImportError: {hiding} hides the package `state`" in result.stderr


def test_a_script_that_has_the_name_itself_is_named(tmp_path: Path) -> None:
    script = tmp_path / "losses.py"
    script.write_text("import orchestrator\n")
    assert f"ImportError: {script} hides the package `losses`" in python(script, folder=tmp_path).stderr


def test_the_command_says_it(tmp_path: Path) -> None:
    hiding = write(tmp_path, "losses.py")
    result = python("-m", "orchestrator", "train", folder=tmp_path)
    assert result.returncode != 0
    assert f"{hiding} hides the package `losses`" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("file", ["losses.py", "state/__init__.py"])
def test_the_installed_command_which_finds_ours_first_does_not_run_in_such_a_folder(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hiding = write(tmp_path, file)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--run-dir", "run"]) == 2
    error = capsys.readouterr().err
    assert str(hiding) in error
    assert "rename it" in error
    assert not (tmp_path / "was-run").exists()


def test_what_hides_nothing_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "losses").mkdir()
    (tmp_path / "package").mkdir()
    write(tmp_path / "package", "state.py")
    result = python("-c", "import orchestrator, losses, state; print(losses.Loss.__name__)", folder=tmp_path)
    assert result.stdout == "Loss\n", result.stderr


def test_workers_take_ours_where_the_working_folder_has_such_a_file_and_the_script_is_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, "losses.py")
    write(tmp_path, "state.py")
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "train.py"
    script.write_text(TRAIN)
    result = python(script, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 2
    assert not (tmp_path / "was-run").exists()
