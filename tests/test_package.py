"""The package as its users get it: built, installed into a fresh environment, used outside of the checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.paths import PROJECT

pytestmark = pytest.mark.slow

PROJECT_TABLE: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
PACKAGES = ("orchestrator", "losses", "state")
DEADLINE = 200.0
SMALL = ["--collection.num-environments", "8", "--collection.horizon", "32", "--metrics.progress", "plain"]


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel in it, and an empty folder to work in."""

    python: Path
    folder: Path

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [*map(str, words)]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
        )

    def orchestrator(self, *words: object) -> str:
        """What the command prints; it must go well."""
        result = self.run(self.python.with_name("orchestrator"), *words)
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    source, built = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
    shutil.copytree(PROJECT, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", built, source]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return built


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The dependencies are those of this environment, so that torch is not installed twice."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "--python", python, "install", *options, wheel]
    subprocess.run(command, check=True, timeout=DEADLINE)
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{Path(spec.origin).parent.parent}\n")
    return Installed(python, tmp_path_factory.mktemp("empty"))


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    files = {path for package in PACKAGES for path in (PROJECT / package).rglob("*") if path.is_file()}
    expected = {str(path.relative_to(PROJECT)) for path in files if "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {"orchestrator/presets/cartpole.toml", "orchestrator/py.typed", "orchestrator/report/report.css"} <= found


def test_the_sdist_has_what_a_packager_needs(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "orchestrator/presets/cartpole.toml"} <= names


def test_the_installed_command_trains_resumes_and_evaluates_outside_of_the_checkout(installed: Installed) -> None:
    where = "import orchestrator, losses, state; print(orchestrator.__file__, losses.__file__, state.__file__)"
    files = installed.run(installed.python, "-c", where).stdout.split()
    assert len(files) == len(PACKAGES)
    assert all(Path(file).is_relative_to(installed.python.parent.parent) for file in files)

    assert installed.orchestrator("--version") == f"orchestrator {PROJECT_TABLE['version']}\n"
    assert "lunar_lander" in installed.orchestrator("presets")
    steps = ["--total-agent-steps", 1024, *SMALL]
    assert "trained 1," in installed.orchestrator("train", "--preset", "cartpole", "--run-dir", "first", *steps)
    longer = ["--total-agent-steps", 2048, "--metrics.progress", "off"]
    installed.orchestrator("train", "--resume", "first", *longer)
    records = [json.loads(line) for line in (installed.folder / "first" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    assert records[-1]["agent_step"] >= 2048
    assert json.loads(installed.orchestrator("eval", "first", "--episodes", 2, "--json"))["episodes"] == 2


def test_the_extra_all_brings_every_other() -> None:
    extras: dict[str, list[str]] = PROJECT_TABLE["optional-dependencies"]
    (everything,) = extras["all"]
    found = re.fullmatch(rf"{PROJECT_TABLE['name']}\[([\w,-]+)\]", everything)
    assert found is not None
    assert sorted(found[1].split(",")) == sorted(extras.keys() - {"all"})


def test_only_what_the_checks_run_on_is_claimed() -> None:
    named = {one.removeprefix("Programming Language :: Python :: ") for one in PROJECT_TABLE["classifiers"]}
    assert {one for one in named if re.fullmatch(r"3\.\d+", one)} == {"3.11"}
    assert not any("MacOS" in one or "OS Independent" in one for one in named)
