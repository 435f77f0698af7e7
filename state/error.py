"""The root of all errors that this project raises, and what is at the bottom of groups of errors."""

from __future__ import annotations


class OrchestratorError(Exception):
    """Base of every error that the project raises for its users.

    The message names what was wrong, the value seen, what was expected and the cure. Each is also of the builtin kind
    that fits it: ValueError where the input was wrong, RuntimeError where the run failed.
    """


def only_error(group: BaseException) -> BaseException:
    """The one error at the bottom of nested groups, or the group if there are several. One that several tasks have
    failed with counts once."""
    while isinstance(group, BaseExceptionGroup) and len(set(map(id, group.exceptions))) == 1:
        group = group.exceptions[0]
    return group
