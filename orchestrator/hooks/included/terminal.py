"""The terminal, whose reader may go away: a pipe into `head`, a lost connection. Nothing ends or fails for that."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, redirect_stdout
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable


def say(text: str, stream: IO[str] | None) -> None:
    """Write a line to a stream, if there is one that is still read."""
    if stream is not None:
        print(text, file=cast("IO[str]", Forgiving(stream)), flush=True)


@contextmanager
def output_that_may_be_lost() -> Generator[None]:
    """What is printed meanwhile fails for no reader that has gone."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - a program may be started without
        yield
        return
    with redirect_stdout(cast("IO[str]", Forgiving(sys.stdout))):
        yield


def let_go_of_lost_streams() -> None:
    """For the end of a program: the interpreter's last flush shall not fail for a reader that has gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # gone, closed, or never there
            _discard(stream)


def _discard(stream: Any) -> None:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class Forgiving:
    """A text stream, to which writing never fails: what nobody takes is lost."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.error: Exception | None = None
        """Why something was lost, last."""

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError) as error:
            self.error = error
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
