"""What a run's log says at level INFO, on the terminal: what takes long, and what it needs."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.hooks.included.terminal import say

if TYPE_CHECKING:
    from collections.abc import Generator

_log = logging.getLogger("orchestrator")


@contextmanager
def notices_shown() -> Generator[None]:
    """Meanwhile, the log's lines of level INFO are written to standard error, as those of warnings are anyway.

    Not where code of the user's has set up logging, or does so meanwhile: then that says what is shown.
    """
    if logging.getLogger().handlers or _log.handlers or _log.level != logging.NOTSET:
        yield
        return
    notices = _Notices(logging.INFO)
    _log.addHandler(notices)
    _log.setLevel(logging.INFO)
    try:
        yield
    finally:
        _log.removeHandler(notices)
        _log.setLevel(logging.NOTSET)


class _Notices(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            say(self.format(record), sys.stderr)  # the one of the moment: a live view writes above itself
