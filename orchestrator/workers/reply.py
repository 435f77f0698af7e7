"""What a worker's answer means to its caller."""

from __future__ import annotations

from typing import Any

from state.error import OrchestratorError


class WorkerCrashed(OrchestratorError, RuntimeError):
    """A worker ended without an answer: killed, out of memory, or crashed in native code."""


def result_of(reply: tuple[Any, ...], name: str) -> Any:
    """What the worker called `name` has answered. Raises the error that it has sent, with its traceback as a note."""
    if reply[0] == "error":
        _, remote_error, text = reply
        remote_error.add_note(f"raised in worker {name!r}:\n{text}")
        raise remote_error
    return reply[1]
