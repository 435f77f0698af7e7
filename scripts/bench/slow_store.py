"""An object store for benchmarks that takes its time and nothing else: a stand-in for one on another machine.

It speaks as much of S3 as an upload of checkpoints asks for, answers each request after a delay, and keeps small
objects only. The server that the tests use parses and hashes in Python what it is sent: on one machine with the
training that is most of what would be measured.
"""

from __future__ import annotations

import sys
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

KEPT = 1 << 20
"""Bytes up to which an object can be read again."""


class Store(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seconds = 0.0
    """That each request takes."""
    objects: dict[str, bytes] = {}  # noqa: RUF012

    def do_PUT(self) -> None:
        content = self._receive()
        parts = urlsplit(self.path)
        current = self.objects.get(parts.path)
        tag = None if current is None else _tag(current)
        if (self.headers["If-None-Match"] and tag) or self.headers["If-Match"] not in (None, tag):
            self._answer(412)
        else:
            if "partNumber" not in parse_qs(parts.query):
                self.objects[parts.path] = content
            self._answer(200, tag=_tag(content))

    def do_POST(self) -> None:
        self._receive()
        parts = urlsplit(self.path)
        bucket, _, key = parts.path.lstrip("/").partition("/")
        place = f"<Bucket>{bucket}</Bucket><Key>{key}</Key>"
        if parts.query.startswith("uploads"):
            name, rest = "InitiateMultipartUploadResult", f"<UploadId>{uuid.uuid4().hex}</UploadId>"
        else:
            self.objects[parts.path] = b""
            name, rest = "CompleteMultipartUploadResult", f"<ETag>{_tag(b'')}</ETag>"
        self._answer(200, f"<{name}>{place}{rest}</{name}>".encode())

    def do_GET(self) -> None:
        content = self.objects.get(urlsplit(self.path).path)
        if content is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer(200, content, tag=_tag(content))

    def _receive(self) -> bytes:
        left = int(self.headers["Content-Length"] or 0)
        if left <= KEPT:
            return self.rfile.read(left)
        buffer = memoryview(bytearray(KEPT))
        while left and (count := self.rfile.readinto1(buffer[:left])):  # type: ignore[attr-defined]
            left -= count
        return b""

    def _answer(self, status: int, content: bytes = b"", tag: str = "") -> None:
        time.sleep(self.seconds)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def _tag(content: bytes) -> str:
    return f'"{hash(content):x}"'


if __name__ == "__main__":
    Store.seconds = float(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
