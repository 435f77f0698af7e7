"""The part of W&B's server that the real library talks to while a run goes on, on loopback."""

from __future__ import annotations

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import wandb

if TYPE_CHECKING:
    from collections.abc import Generator

    import pytest


class WandbServer(ThreadingHTTPServer):
    """Takes everything. `stopped` is what pressing the button on the page sets; `files` counts the requests that tell
    how a run goes on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stopped = threading.Event()
        self.files = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Generator[WandbServer]:
    """While entered, it is where W&B of this process goes to."""
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        wandb.teardown()  # it reads the environment once
        try:
            yield server
        finally:
            wandb.teardown()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert isinstance(self.server, WandbServer)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            answer = {"data": self._graphql(json.loads(body))}
        elif self.path.endswith("/file_stream"):
            self.server.files += 1
            answer = {"exitcode": None, "limits": {}, "stopped": self.server.stopped.is_set()}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self.server, WandbServer)
        query, variables = request["query"], request.get("variables") or {}
        if "viewer" in query:
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if "upsertBucket" in query:
            project = {"id": "p", "name": "tests", "entity": {"id": "e", "name": "me"}}
            bucket = {
                "id": "b",
                "name": variables.get("name"),
                "displayName": "run",
                "config": "{}",
                "project": project,
                "historyLineCount": 0,
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"{self.server.address}/upload/{place}"}
                for place, name in enumerate(variables.get("files") or ())
            ]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}
