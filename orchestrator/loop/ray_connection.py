"""The program's connection to Ray."""

from __future__ import annotations

import importlib
import logging
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.config.paths import PATH
from orchestrator.workers.remote import MachineLost
from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Generator

REACHED_SECONDS = 10.0
"""That a cluster has to answer at all."""
_STILL_SECONDS = 3.0
"""That one has whose answer only decides how it is left."""
_LEAVING_SECONDS = 10.0
"""That calls in progress have to end once what they call is gone."""


class ClusterError(OrchestratorError, RuntimeError):
    """The cluster can't be reached, has no place for a cell, or has lost one that is not to be replaced."""


def ray_library() -> Any:
    """The library, which only runs on several machines need, and which has few types."""
    return importlib.import_module("ray")


class Connections:
    """This program's connection to Ray, which it has one of, and several runs may want."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs = 0
        self._calls = 0
        """In progress."""
        self._own = False

    def join(self, address: str) -> None:
        ray = ray_library()
        with self._changed:
            if not self._runs and not ray.is_initialized():
                try:
                    _check_reachable(address)
                    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
                except Exception as error:
                    raise ClusterError(
                        f"{PATH.cluster} = {address!r}: no Ray cluster answers there, as one of this machine:"
                        f" {type(error).__name__}: {error}; start one with `ray start --head`, or join one with"
                        " `ray start --address HOST:PORT`; one whose head has said that it wants a token needs"
                        " RAY_AUTH_MODE=token here too"
                    ) from error
                self._own = True
            _check_connected(address)
            self._runs += 1

    @contextmanager
    def calling(self) -> Generator[None]:
        """For what calls Ray in a thread that nobody may wait for: Ray ends the whole program where it is called while,
        or after, it is shut down. Raises MachineLost when all runs have left."""
        with self._changed:
            if not self._runs:
                raise MachineLost("the run has left its cluster")
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def leave(self, within: float = _LEAVING_SECONDS) -> None:
        """What is still connected so many seconds later stays so, for the next run or until the program ends."""
        with self._changed:
            self._runs -= 1
            if (
                self._own
                and not self._runs
                and self._changed.wait_for(lambda: self._runs or not self._calls, within)
                and not self._runs
            ):
                ray_library().shutdown()
                self._own = False


CONNECTIONS = Connections()


def take_signals_back() -> None:
    """Ray has put a handler of its own, which prints a stack trace, before the program's for SIGTERM; this puts the
    program's back. Only in the main thread."""
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def is_reachable(address: str) -> bool:
    """Whether a cluster's head, `HOST:PORT`, still answers. Blocks for some seconds at most."""
    try:
        _check_reachable(address, _STILL_SECONDS)
    except OSError:
        return False
    return True


def _check_reachable(address: str, within: float = REACHED_SECONDS) -> None:
    """Raises OSError where nobody answers, which Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=within).close()


def _check_connected(address: str) -> None:
    """Raises ClusterError where this program's connection is to another cluster: it can have only one."""
    connected: str = ray_library().get_runtime_context().gcs_address
    if address != "auto" and address.rpartition(":")[2] != connected.rpartition(":")[2]:
        raise ClusterError(
            f"{PATH.cluster} = {address!r}: this program is connected to the cluster {connected} already, and Ray"
            " connects a program to one only; train there, or in a program of its own"
        )
