"""The worker's side: construct the object that was asked for, then answer requests until the host hangs up."""

from __future__ import annotations

import logging
import os
import pickle
import traceback
from typing import TYPE_CHECKING, Any, cast

from orchestrator.config.own_code import place_of
from orchestrator.workers.interrupt import end_fork_of
from state.user_code import described, failure_of, is_ordinary

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.workers.channel import Channel

_log = logging.getLogger("orchestrator")
CONSTRUCT = "__construct__"
"""The pseudo-method whose arguments are the factory of the worker's object and what to call it with."""


def serve(channel: Channel, threads: int) -> None:
    """Answer requests `(method, args)` with `("ok", value)` or `("error", exception, traceback)`.

    Blocks; returns when the host closes its end. `threads` are the intra-operator threads that torch may use.
    """
    import torch

    torch.set_num_threads(threads)
    process = os.getpid()
    target: Any = None
    try:
        while True:
            try:
                method, args = channel.receive()
            except (EOFError, ConnectionError):
                return
            except BaseException as error:
                channel.send(failure_reply(error))
                continue
            try:
                if method == CONSTRUCT:
                    factory, arguments = cast("tuple[Callable[..., Any], tuple[Any, ...]]", args)
                    target, value = factory(*arguments), None
                else:
                    value = getattr(target, method)(*args)
            except BaseException as error:
                reply = failure_reply(error)
            else:
                reply = ("ok", value)
            end_fork_of(process)
            _send(channel, reply)
    finally:
        _close(target)


def _close(target: object) -> None:
    """Nobody waits for what a worker's object still says: that it fails to close is told, and harms nothing."""
    close = getattr(target, "close", None)
    if close is None:
        return
    try:
        close()
    except Exception as error:
        each: list[Exception] = list(error.exceptions) if isinstance(error, ExceptionGroup) else [error]
        notes = "".join(f" ({note})" for note in getattr(each[0], "__notes__", ()))
        more = f", and {len(each) - 1} more" if len(each) > 1 else ""
        _log.warning("%s could not be closed: %s%s%s", type(target).__name__, described(each[0]), notes, more)


def refuse(channel: Channel, error: BaseException) -> None:
    """Answer the first request, that for the object, with `error`: the worker could not begin."""
    channel.receive()
    _send(channel, failure_reply(error))


def _send(channel: Channel, reply: tuple[Any, ...]) -> None:
    try:
        channel.send(reply)
    except (BrokenPipeError, ConnectionError):
        return  # the host has gone; the next receive ends the loop
    except BaseException as error:  # the value does not pickle: say so rather than die
        channel.send(failure_reply(error))


def failure_reply(error: BaseException) -> tuple[str, BaseException, str]:
    """What a worker answers where its object raised `error`."""
    text = "".join(traceback.format_exception(error))
    if not is_ordinary(error):  # a SystemExit or CancelledError is the worker's, and must not act on the host
        error = failure_of(error, f"code at {place_of(error)}")
    try:
        pickle.loads(pickle.dumps(error))
    except BaseException:  # an exception with its own constructor, or with unpicklable attributes
        error = RuntimeError(described(error))
    return "error", error, text
