"""A prefix in an object store: the few requests that checkpoints need, with timeouts and clear errors."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from orchestrator.checkpoints.manifest import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

T = TypeVar("T")

SCHEMES = ("s3", "gs", "az", "file", "memory")

_RANGE = 16 * 1024 * 1024
PART = 8 * 1024 * 1024
"""Bytes of the parts in which large objects are written."""
_RETRIES = 8
_memory: dict[str, Any] = {}
"""Stores of this process's memory, by the name in their address."""


class StoreUnavailable(CheckpointError, ConnectionError):
    """The object store did not do what it was asked for, and may do it later."""


class AlreadyThere(Exception):
    """An object that was to be new exists."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing: its key below the prefix, its size in bytes, when it was written."""

    key: str
    size: int
    written: datetime


def address_problem(address: str) -> str | None:
    """What is wrong with the address of a place in a store; without repeating it, since it may hold a secret."""
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES:
        return f"an address that begins with {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "an address without credentials, query and fragment: credentials come from the environment"
    if parts.scheme in ("s3", "gs", "az") and not parts.netloc:
        return f"{parts.scheme}://<{'container' if parts.scheme == 'az' else 'bucket'}>/..."
    if any(part in (".", "..") for part in unquote(parts.path).split("/")):
        return "an address without . and .."
    return None


class Objects:
    """The objects below one address (s3://, gs://, az://, file:// or memory://); all of it blocks.

    Credentials and endpoints come from the environment (AWS_..., GOOGLE_..., AZURE_...). A request may take
    `request_seconds`; one that fails in a way that may pass is repeated by the client library with growing distances,
    for at most twice that time. Raises CheckpointError for an address that cannot be used, and where the extra is
    missing.
    """

    def __init__(self, address: str, *, request_seconds: float = 30.0) -> None:
        problem = address_problem(address)
        if problem is not None:
            raise CheckpointError(f"a checkpoint's address must be {problem}")
        try:
            import obstore
            import obstore.exceptions
        except ModuleNotFoundError as error:
            raise CheckpointError(
                f"{address} is in an object store, for which the extra `remote` is needed: "
                "pip install 'async-rl-orchestrator[remote]'"
            ) from error
        self.address = address.rstrip("/")
        self._obstore = obstore
        self._errors = obstore.exceptions
        self._given_up = threading.Event()
        self._prefix = ""
        try:
            self._store = self._open(request_seconds)
        except (ValueError, OSError, self._errors.BaseError) as error:
            raise CheckpointError(f"the store of {address} cannot be used: {_first_line(error)}") from error

    def give_up(self) -> None:
        """From now on no further request begins. From any thread."""
        self._given_up.set()

    def get(self, key: str) -> bytes | None:
        """The content of an object, or None where there is none."""

        def get() -> bytes | None:
            try:
                return bytes(self._obstore.get(self._store, self._prefix + key).bytes())
            except FileNotFoundError:
                return None

        return self._request("read", key, get)

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""

        def head() -> int | None:
            try:
                return self._obstore.head(self._store, self._prefix + key)["size"]
            except FileNotFoundError:
                return None

        return self._request("look at", key, head)

    def read(self, key: str, size: int) -> Iterator[bytes]:
        """The content of an object of `size` bytes, in ranges, each of which is retried by itself."""
        for begin in range(0, size, _RANGE):
            end = min(size, begin + _RANGE)

            def get_range(begin: int = begin, end: int = end) -> bytes:
                return bytes(self._obstore.get_range(self._store, self._prefix + key, start=begin, end=end))

            yield self._request("read", key, get_range)

    def put(self, key: str, content: Callable[[], bytes | Iterator[bytes]]) -> None:
        """Write an object, over one that may be there. What is large, or comes in pieces, goes in parts, which takes
        some requests more.

        `content` is asked for at every try. What it raises while it is read is raised here, and nothing is written.
        """
        self._request(
            "write", key, lambda: self._obstore.put(self._store, self._prefix + key, content(), chunk_size=PART)
        )

    def create(self, key: str, content: bytes) -> None:
        """Write an object that must be new. Raises AlreadyThere, also where an earlier try did write it."""

        def create() -> None:
            try:
                self._obstore.put(self._store, self._prefix + key, content, mode="create", use_multipart=False)
            except (self._errors.AlreadyExistsError, self._errors.PreconditionError) as error:
                raise AlreadyThere(key) from error

        self._request("write", key, create)

    def list(self, prefix: str = "") -> list[Listed]:
        """The objects whose keys begin with the folder `prefix`, which ends in a slash or is empty."""

        def list_all() -> list[Listed]:
            batches = self._obstore.list(self._store, (self._prefix + prefix) or None)
            return [
                Listed(entry["path"].removeprefix(self._prefix), entry["size"], entry["last_modified"])
                for batch in batches
                for entry in batch
            ]

        return self._request("list", prefix, list_all)

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens where there is none."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._obstore.delete(self._store, self._prefix + key)

        self._request("delete", key, delete)

    def _request(self, doing: str, key: str, request: Callable[[], T]) -> T:
        if self._given_up.is_set():
            raise StoreUnavailable(f"gave up to {doing} {key} at {self.address}")
        try:
            return request()
        except (self._errors.PermissionDeniedError, self._errors.UnauthenticatedError) as error:
            raise CheckpointError(
                f"{self.address} does not let us {doing} {key}: check the credentials in the environment "
                f"({_first_line(error)})"
            ) from error
        except (self._errors.NotSupportedError, NotImplementedError) as error:
            raise CheckpointError(f"{self.address} cannot {doing} {key}: {_first_line(error)}") from error
        except self._errors.BaseError as error:
            raise StoreUnavailable(f"{self.address} did not {doing} {key}: {_first_line(error)}") from error

    def _open(self, request_seconds: float) -> Any:
        from obstore.store import LocalStore, MemoryStore, from_url

        parts = urlsplit(self.address)
        if parts.scheme == "memory":
            self._prefix = f"{unquote(parts.path).strip('/')}/".removeprefix("/")
            return _memory.setdefault(parts.netloc, MemoryStore())
        if parts.scheme == "file":
            return LocalStore(unquote(parts.path), mkdir=True)
        allow_http = any(os.environ.get(f"{name}_ALLOW_HTTP", "").lower() in ("1", "true") for name in _PROVIDERS)
        return from_url(
            self.address,
            client_options={
                "timeout": timedelta(seconds=request_seconds),
                "connect_timeout": timedelta(seconds=min(5.0, request_seconds)),
                "allow_http": allow_http,
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=2 * request_seconds)},
        )


_PROVIDERS = ("AWS", "AZURE", "GOOGLE")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or repr(error)
