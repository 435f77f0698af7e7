"""Files stay so short that each has one subject."""

from __future__ import annotations

import pytest

from tests.paths import PROJECT

MOST_LINES = 400


@pytest.mark.parametrize("package", ["orchestrator", "losses", "state"])
def test_no_file_of_the_packages_is_long(package: str) -> None:
    files = list((PROJECT / package).rglob("*.py"))
    lengths = {str(file.relative_to(PROJECT)): len(file.read_text().splitlines()) for file in files}
    assert len(lengths) > 5
    assert {file: length for file, length in lengths.items() if length > MOST_LINES} == {}
