"""Which checkpoints of a run were copied elsewhere, for what is said when it ends."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


class Copies:
    """Which checkpoints were to be copied to one place, and why some were not."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._missing: dict[Path, str | None] = {}
        """What each has failed with; None once it is copied."""

    def begin(self) -> None:
        """Forget an earlier run's."""
        self._missing.clear()

    @contextmanager
    def copying(self, path: Path) -> Generator[None]:
        """Around the copying of one checkpoint; the last attempt counts."""
        self._missing[path] = "the run ended before it was done"
        try:
            yield
        except Exception as error:
            self._missing[path] = str(error) or repr(error)
            raise
        self._missing[path] = None

    def problem(self) -> str | None:
        """How many are missing there, and why the newest of these is; None where none is."""
        reasons = [reason for reason in self._missing.values() if reason is not None]
        if not reasons:
            return None
        count, total = len(self._missing) - len(reasons), len(self._missing)
        checkpoints = "checkpoint was" if total == 1 else "checkpoints were"
        return f"{count} of {total} {checkpoints} copied to {self.place}: {reasons[-1]}"
