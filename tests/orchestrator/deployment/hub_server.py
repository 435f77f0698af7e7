"""The part of the Hugging Face Hub that an upload talks to, on loopback."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import pytest

TOKEN = "hf_loopback"


class HubServer(ThreadingHTTPServer):
    """Keeps models in memory. Whoever has `TOKEN` may write to the repositories of `alice`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.visibility: dict[str, str] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.broken = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.broken:
            self._answer(500, {"error": "out of order"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif self.path.partition("?")[0].endswith("/commit/main"):
            self._commit("/".join(self.path.split("/")[3:5]), [json.loads(line) for line in body.splitlines()])
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        else:
            self._answer(404, {"error": f"the stand-in knows no {self.path}"})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "alice":
            self._answer(403, {"error": f"You don't have the rights to create a model under {wanted['organization']}"})
        elif name in self.server.files:
            self._answer(409, {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"})
        else:
            self.server.files[name] = {}
            self.server.visibility[name] = wanted.get("visibility", "private" if wanted.get("private") else "public")
            self._answer(200, {"url": f"{self.server.address}/{name}", "name": name, "id": "1"})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "header":
                self.server.messages.append(line["value"]["summary"])
            else:
                assert line["key"] == "file"
                assert line["value"]["encoding"] == "base64"
                self.server.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._answer(200, {"commitUrl": f"{self.server.address}/{name}/commit/abc", "commitOid": "abc"})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch, home: Path) -> Generator[HubServer]:
    """While entered, it is the Hub of this process and of those that it starts, which have its token."""
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HOME", str(home / "of-the-hub"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)  # which is read at the import
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
