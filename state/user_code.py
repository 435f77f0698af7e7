"""What a user's code raises, as failures with a name: whatever it is, and without ending what it was called from."""

from __future__ import annotations

import signal
import threading
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Generator

_signals_reach_us = True


class UserCodeFailed(OrchestratorError, RuntimeError):
    """A user's code has raised what would end a program or a coroutine, such as SystemExit; the message says which."""


def expect_no_signals() -> None:
    """For a process in which no signal raises anything: each SystemExit and KeyboardInterrupt is then a failure."""
    global _signals_reach_us
    _signals_reach_us = False


def is_signal(error: BaseException) -> bool:
    """Whether an error may have been raised by a signal, such as Ctrl-C, in the midst of a user's code."""
    if not _signals_reach_us or threading.current_thread() is not threading.main_thread():
        return False
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and callable(signal.getsignal(signal.SIGTERM))
    )


def described(error: BaseException) -> str:
    """The error's type and text, whatever its `__str__` does; with a cure where it would end a program."""
    name = type(error).__name__
    try:
        text = f"{name}: {error}".removesuffix(": ")
    except Exception as fault:
        text = f"{name}, whose text cannot be had ({type(fault).__name__})"
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        text += "; raise another exception where something is wrong, and end a run by stop() of a hook's run"
    return text


def represented(error: BaseException) -> str:
    """The error's `repr`, and `described` where it has none."""
    try:
        return repr(error)
    except Exception:
        return described(error)


def line_of(error: BaseException) -> tuple[str, int | None]:
    """Where an error was raised."""
    place: tuple[str, int | None] = "", None
    for frame, line in traceback.walk_tb(error.__traceback__):
        place = frame.f_code.co_filename, line
    return place


def let_go_of_frames(error: BaseException | None) -> None:
    """The frames of an error, and of those before it, hold the state, whose views the training needs back."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def is_ordinary(error: BaseException) -> bool:
    """Whether an error can be raised anywhere and only says that something failed."""
    return isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration))


def failure_of(error: BaseException, what: str) -> BaseException:
    """An error that `what` has raised as it is to be raised further: with `what` as a note, or where it would end a
    program or a coroutine, as UserCodeFailed. What may be a signal's stays as it is."""
    if is_signal(error):
        return error
    if is_ordinary(error):
        error.add_note(f"raised by {what}")
        return error
    return UserCodeFailed(f"{what} raised {described(error)}")


def raise_failure(error: BaseException, what: str) -> NoReturn:
    """Raises an error that is being handled as `failure_of` says."""
    failure = failure_of(error, what)
    if failure is error:
        raise error
    raise failure from error


@contextmanager
def user_code(what: str) -> Generator[None]:
    """Raises what is raised within as `failure_of` says. (Loops that are hot call `raise_failure` themselves.)"""
    try:
        yield
    except BaseException as error:
        raise_failure(error, what)
