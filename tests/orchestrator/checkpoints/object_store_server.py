"""A real S3 server on loopback that can be told to misbehave."""

from __future__ import annotations

import threading
import urllib.request
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import pytest


class ObjectStoreServer:
    """moto's server, with something in front of it that sees every request before it is served.

    `on_request` gets method and path, and may return an HTTP status instead of the answer, or wait.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from moto.server import DomainDispatcherApplication, create_backend_app
            from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
                pass

        self._application = DomainDispatcherApplication(create_backend_app)
        self.on_request: Callable[[str, str], int | None] = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True)
        self._thread.start()

    def make_bucket(self, name: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")).close()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _serve(self, environment: Any, start_response: Any) -> Any:
        method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"]
        self.seen.append((method, path))
        status = self.on_request(method, path)
        if status is not None:
            body = b"<Error><Code>InternalError</Code><Message>not now</Message></Error>"
            start_response(
                f"{status} Trouble", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            )
            return [body]
        return self._application(environment, start_response)


def environment(server: ObjectStoreServer) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "TOP-SECRET",
    }


@contextmanager
def object_store_server(monkeypatch: pytest.MonkeyPatch, bucket: str) -> Generator[ObjectStoreServer]:
    server = ObjectStoreServer()
    try:
        server.make_bucket(bucket)
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        yield server
    finally:
        server.on_request = lambda method, path: None
        server.close()
