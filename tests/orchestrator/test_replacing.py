"""Files that are replaced as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.replacing import replacing


def test_a_file_is_there_as_a_whole_once_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    for content in ("first", "second"):
        with replacing(path) as working:
            working.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_file_stays_as_it_was_where_nothing_is_written_or_an_error_comes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path):
        pass
    with pytest.raises(ZeroDivisionError), replacing(path) as working:
        working.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
