"""SIGUSR1 while there is no run that could take a checkpoint."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def ignore_while_nothing_runs() -> None:
    """Have SIGUSR1 do nothing, where it would end the program: before a run has begun, and after it has ended.

    A handler, since an ignored signal would be ignored by all programs that this one starts, too.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, _nothing_to_save)


def _nothing_to_save(number: int, frame: FrameType | None) -> None: ...
