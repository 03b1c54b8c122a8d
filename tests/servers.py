"""Servers for tests: what a bucket is to a test, and a web server that answers what it is told."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cnnbatch.storage import StorageOptions


@dataclass(frozen=True)
class Bucket:
    """An empty bucket: ``url`` is ``s3://NAME``, ``client`` is boto3's."""

    url: str
    name: str
    options: StorageOptions
    client: Any

    def put(self, path: str, data: bytes = b"x") -> str:
        """Put an object past the product; return its address."""
        self.client.put_object(Bucket=self.name, Key=path, Body=data)
        return f"{self.url}/{path}"


@dataclass(frozen=True)
class Reply:
    """What the web server says once."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0

    @staticmethod
    def error(status: int, code: str) -> Reply:
        """Return an error as S3 words it."""
        return Reply(status, f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode())

    def part(self, wanted: str | None) -> Reply:
        """Return the part of a good reply that a Range header asks for."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
        if found is None or self.status != 200:
            return self
        return replace(self, status=206, body=self.body[int(found[1]) : int(found[2]) + 1])


class WebServer:
    """Answers by ``answer(method, path)``; ``requests`` lists the paths asked for, with their queries.

    ``conditions`` lists (method, header, value) of every condition that came with a request; ``ranged`` says
    whether the server knows ranges, of which ``ranges`` lists (path, Range header).
    """

    def __init__(self) -> None:
        self.answer: Callable[[str, str], Reply] = lambda method, path: Reply(404)
        self.requests: list[str] = []
        self.conditions: list[tuple[str, str, str]] = []
        self.ranged = False
        self.ranges: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802
                outer.requests.append(self.path)
                for name, value in self.headers.items():
                    if name.lower().startswith(("if-", "x-goog-if-")):
                        outer.conditions.append((self.command, name.lower(), value))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                reply = outer.answer(self.command, self.path)
                if outer.ranged and (wanted := self.headers.get("Range")):
                    outer.ranges.append((self.path, wanted))
                    reply = reply.part(wanted)
                outer.stopping.wait(reply.wait_s)
                self.send_response(reply.status)
                known = {"ETag": '"tag"', "Last-Modified": "Tue, 24 Nov 2026 04:00:00 GMT"}
                for name, value in {"Content-Length": str(len(reply.body)), **known, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(reply.body)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *message: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *where: object) -> None:
                """Say nothing of clients that gave up waiting."""

        self.stopping = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def url(self, host: str = "127.0.0.1") -> str:
        """Return the server's address under a name of this machine."""
        return f"http://{host}:{self._server.server_port}"

    def stop(self) -> None:
        """End all answers and the server."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
