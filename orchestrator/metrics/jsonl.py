"""`metrics.jsonl`: a file with one JSON object per line and epoch."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from orchestrator.replacing import replacing

if TYPE_CHECKING:
    from io import FileIO

    from orchestrator.metrics.sink import Record, RunInfo


_log = logging.getLogger("orchestrator.metrics")


class JsonLines:
    """Appends to `path`, by default `metrics.jsonl` in the run's folder.

    Each line reaches the operating system in one piece before the next epoch's, so a kill loses at most one.
    A resumed run first drops the records of the epochs that it makes again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._file: FileIO
        self._end = 0

    def open(self, run: RunInfo) -> None:
        """Raises ValueError where neither a path nor the run's folder is known."""
        path = self._path or (None if run.run_dir is None else run.run_dir / "metrics.jsonl")
        if path is None:
            raise ValueError("the run has no folder: give JsonLines the path of its file")
        path.parent.mkdir(parents=True, exist_ok=True)
        truncate_records(path, run.epoch)
        self._file = Path.open(path, "ab", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)

    def write(self, record: Record) -> None:
        """Raises OSError, after having removed what was written of a line, where the disk is full."""
        line = f"{json.dumps(record, allow_nan=False)}\n".encode()
        try:
            written = self._file.write(line)
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(line)

    def close(self) -> None:
        self._file.close()


def truncate_records(path: Path, epoch: int) -> int:
    """Drop the records of epochs after `epoch` from a file of JSON lines; returns how many lines went. Lines that are
    no records, such as one that a kill cut off, go to a file beside it, with a warning in the log.

    The file is replaced as a whole: whoever reads it, or kills this process, finds it as before or as after. Where
    there is no file, or nothing to drop, nothing is touched.
    """
    if not path.exists():
        return 0
    dropped = 0
    odd: list[bytes] = []
    with replacing(path) as working:
        with path.open("rb") as lines, working.open("wb") as kept:
            for line in lines:
                of = _epoch_of(line)
                if of is not None and of <= epoch:
                    kept.write(line)
                    continue
                dropped += 1
                if of is None:
                    odd.append(line if line.endswith(b"\n") else line + b"\n")
            kept.flush()
            if dropped:
                os.fsync(kept.fileno())
        if not dropped:
            working.unlink()
        if odd:
            aside = path.with_name(f"{path.name}.odd")
            with aside.open("ab") as file:
                file.writelines(odd)
            _log.warning("%s: lines that are no records (%d) were moved to %s", path, len(odd), aside)
    return dropped


def _epoch_of(line: bytes) -> float | None:
    """The epoch of a whole record, else None."""
    try:
        record: Any = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    epoch = cast("dict[str, object]", record).get("epoch") if isinstance(record, dict) else None
    return epoch if isinstance(epoch, (int, float)) else None
