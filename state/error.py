"""The root of all errors that this project raises."""

from __future__ import annotations


class OrchestratorError(Exception):
    """Base of every error that the project raises for its users.

    The message names what was wrong, the value seen, what was expected and the cure. Each is also of the builtin kind
    that fits it: ValueError where the input was wrong, RuntimeError where the run failed.
    """
