"""The documentation as a site, built as scripts/docs.sh does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import losses
import orchestrator
import state
from tests.paths import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
DEADLINE = 200.0


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    options = ["--strict", "--config-file", project / "scripts" / "site" / "mkdocs.yml", "--site-dir", site]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    command = [sys.executable, "-m", "mkdocs", "build", *map(str, options)]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    result = build(PROJECT, folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_site_is_built_without_a_warning_and_shows_every_public_name(site: Path) -> None:
    shown = {name for page in site.glob("reference/*.html") for name in re.findall(r'id="([\w.]+)"', page.read_text())}
    public = {f"{package.__name__}.{name}" for package in (orchestrator, losses, state) for name in dir(package)}
    assert public - shown == set()
    assert "orchestrator.Run.pause" in shown, "with what a class has"


def test_readers_of_the_site_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]+)", page.read_text())
        assert loaded == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", sheet.read_text()), sheet


def test_documents_of_the_projects_top_are_pages_whose_links_lead_to_pages(site: Path) -> None:
    assert 'href="hooks.html"' in (site / "index.html").read_text()
    assert 'href="SECURITY.html"' in (site / "using.html").read_text()
    assert "https://github.com" not in (site / "CONTRIBUTING.html").read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        {
            "docs/glossary.md": ["[](nowhere.md)", "[](hooks.md#no-such-heading)"],
            "README.md": ["[](docs/hooks.md#nor-this)", "[](docs/none.md)"],
        },
        {"docs/reference/state.md": ["::: state.NoSuchName"]},
    ],
)
def test_what_leads_nowhere_fails_the_build(wrong: dict[str, list[str]], tmp_path: Path) -> None:
    for name in ("docs", "scripts/site", "state"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    for reference in (tmp_path / "docs" / "reference").glob("*.md"):  # which takes most of the time
        reference.write_text("# Nothing\n")
    for document in (*PROJECT.glob("*.md"), PROJECT / "LICENSE"):
        shutil.copy(document, tmp_path)
    for page, lines in wrong.items():
        with (tmp_path / page).open("a") as file:
            file.write("\n\n".join(["", *lines, ""]))
    result = build(tmp_path, tmp_path / "site")
    assert result.returncode != 0
    for line in [line for lines in wrong.values() for line in lines]:
        name = re.sub(r"^::: |^\[\]\((docs/)?|\)$", "", line)
        assert name in result.stderr, result.stderr
