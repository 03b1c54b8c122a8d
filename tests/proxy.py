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
from typing import Literal, get_args
from urllib.parse import urlsplit

Fault = Literal["500", "500_after", "503", "reset_before", "reset_after", "delay", "truncated"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
"""What a request may meet.

``500_after`` and ``reset_after`` reach the server, whose answer is lost; ``truncated`` cuts an answer's
body, and its connection, in the middle.
"""

_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_OWN_HEADERS = ("content-length", "transfer-encoding", "connection", "date", "server")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class FaultyProxy:
    """Hands requests on to ``target`` (``http://HOST:PORT``); a ``share`` of them meets one of ``faults``.

    Which request meets what follows from ``seed`` and the order in which they come; the ``first`` ones meet
    what they are told. ``met`` counts the faults, ``requests`` lists (method, path). From `deny` on, requests
    that ``denies`` chooses are answered with 403 AccessDenied; ``deny_after`` so many of them that begins by
    itself.
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
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
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


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def do_GET(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fate = self.proxy._fate(self.command, self.path)
        if fate == "reset_before":
            self._reset()
        elif fate in ("500", "503"):
            self._say(int(fate), [], b"")
        elif fate == "denied":
            self._say(403, [], _DENIED)
        else:
            threading.Event().wait(self.proxy.delay_s if fate == "delay" else 0)
            answer = self.proxy._forward(self.command, self.path, dict(self.headers), body)
            self._hand_back(fate, *answer)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _hand_back(self, fate: str | None, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        if fate == "reset_after":
            self._reset()
        elif fate == "500_after":
            self._say(500, [], b"")
        else:
            self._say(status, headers, data, cut=fate == "truncated")

    def _say(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False) -> None:
        self.send_response(status)
        sizes = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in _OWN_HEADERS:
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
        """Say nothing of requests."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *where: object) -> None:
        """Say nothing of connections that were closed."""
