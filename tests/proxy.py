"""A proxy between the product and a storage's server that injects faults, the same ones for the same seed."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["500", "500_after", "503", "reset_before", "reset_after", "delay", "truncated"]
FAULTS: tuple[Fault, ...] = ("500", "500_after", "503", "reset_before", "reset_after", "delay", "truncated")
"""What a request may meet.

``500_after`` and ``reset_after`` reach the server, whose answer is lost; ``truncated`` cuts an answer's
body, and its connection, in the middle.
"""

_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class FaultyProxy:
    """Hands requests on to ``target`` (``http://HOST:PORT``); a ``share`` of them meets one of ``faults``.

    Which request meets what follows from ``seed`` and the order in which they come; the ``first`` ones meet
    what they are told. ``met`` counts the faults, ``requests`` lists (method, path). From `deny` on, requests whose path is chosen are answered
    with 403 AccessDenied; with ``deny_after`` that begins behind so many requests that are chosen.
    """

    def __init__(
        self,
        target: str,
        share: float = 0.0,
        faults: Iterable[Fault] = FAULTS,
        seed: int = 0,
        first: Iterable[Fault | None] = (),
        delay_s: float = 0.2,
        deny_after: int | None = None,
        denies: Callable[[str, str], bool] = lambda method, path: True,
    ) -> None:
        self.share, self.delay_s = share, delay_s
        self.met: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self._faults = tuple(faults)
        self._random = random.Random(seed)
        self._first = deque(first)
        self._left, self._denies = deny_after, denies
        self._lock = threading.Lock()
        self._address = (urlsplit(target).hostname or "", urlsplit(target).port or 80)
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The proxy's own address, to be given as the endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def deny(self) -> None:
        """Refuse from now on."""
        with self._lock:
            self._left = 0

    def stop(self) -> None:
        """End the proxy."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _fate(self, method: str, path: str) -> str | None:
        """Return what a request meets; None where it passes."""
        with self._lock:
            self.requests.append((method, path))
            if self._left is not None and self._denies(method, path):
                if self._left <= 0:
                    self.met["denied"] += 1
                    return "denied"
                self._left -= 1
            fault = self._next()
            if fault is not None:
                self.met[fault] += 1
            return fault

    def _next(self) -> Fault | None:
        if self._first:
            return self._first.popleft()
        return self._random.choice(self._faults) if self._random.random() < self.share else None

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802
                body = self._body()
                fate = proxy._fate(self.command, self.path)
                if fate == "reset_before":
                    return self._reset()
                if fate in ("500", "503"):
                    return self._say(int(fate), [], b"")
                if fate == "denied":
                    return self._say(403, [], _DENIED)
                if fate == "delay":
                    threading.Event().wait(proxy.delay_s)
                status, headers, data = proxy._forward(self.command, self.path, dict(self.headers), body)
                if fate == "reset_after":
                    return self._reset()
                if fate == "500_after":
                    return self._say(500, [], b"")
                self._say(status, headers, data, cut=fate == "truncated")

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

            def _body(self) -> bytes:
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    raise NotImplementedError("requests with chunked bodies")
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def _say(
                self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False
            ) -> None:
                self.send_response(status)
                sizes = [value for name, value in headers if name.lower() == "content-length"]
                own = ("content-length", "transfer-encoding", "connection", "date", "server")
                for name, value in headers:
                    if name.lower() not in own:
                        self.send_header(name, value)
                told = sizes[0] if self.command == "HEAD" and sizes else str(len(data))
                self.send_header("Content-Length", told)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self._reset()

            def _reset(self) -> None:
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self.connection.close()
                self.close_connection = True

            def log_message(self, *message: object) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *where: object) -> None:
        """Say nothing of connections that were closed."""
