"""Single files over http(s), through fsspec's session; one host of many may be gone, and the web is up."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import urlsplit

import aiohttp
import fsspec
from fsspec.asyn import sync

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.records import Span
from cnnbatch.storage.address import redact
from cnnbatch.storage.contract import Entry, Forbidden, NotFound, StorageOptions, TooLarge, Unreadable
from cnnbatch.storage.ranges import range_file

_CHUNK = 1 << 16  # bytes
_BUSY = (429, 503)
_TRANSIENT = (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class _Reply:
    """One answer: HTTP ``status``, headers, and the body as far as it was wanted."""

    status: int
    etag: str | None
    size: int
    body: bytes


class Web:
    """Files of web servers, read only."""

    def __init__(self, options: StorageOptions) -> None:
        self._options = options
        timeout = aiohttp.ClientTimeout(total=options.timeout_s, connect=min(10.0, options.timeout_s))
        self._web = fsspec.filesystem(
            "https", skip_instance_cache=True, client_kwargs={"timeout": timeout, "trust_env": True}
        )
        self._served: dict[str, float] = {}
        self._lock = threading.Lock()

    def list(self, uri: str, after: str | None) -> Iterator[Entry]:
        """Refuse: a web server has no listing."""
        raise UserError(
            f"{redact(uri)}: a web server's folder cannot be listed\n  what to do: give a list of addresses"
        )

    def read(self, uri: str, span: Span | None, limit: int | None) -> bytes:
        """Return a file's bytes; of a server that knows no ranges the whole is read and cut."""
        if span is not None and span.length == 0:
            return b""
        headers = {"Range": f"bytes={span.offset}-{span.offset + span.length - 1}"} if span else {}
        reply = self._ask("GET", uri, headers, limit)
        if span and reply.status != 206:
            return reply.body[span.offset : span.offset + span.length]
        return reply.body

    def head(self, uri: str) -> Entry:
        """Return size and etag; of a server that does not know HEAD, or gives no size, by reading."""
        try:
            reply = self._ask("HEAD", uri, {}, None)
        except (Unreadable, Forbidden):
            reply = self._ask("GET", uri, {}, None)
        size = reply.size if reply.size >= 0 else len(self.read(uri, None, None))
        return Entry(uri, size, reply.etag)

    def open(self, uri: str) -> BinaryIO:
        """Open a file for reading at any place."""
        return range_file(lambda span: self.read(uri, span, None), self.head(uri).size)

    def create(self, uri: str, data: bytes | Path) -> str:
        """Refuse."""
        _read_only(uri)

    def replace(self, uri: str, data: bytes | Path, etag: str) -> str:
        """Refuse."""
        _read_only(uri)

    def put(self, uri: str, data: bytes | Path) -> None:
        """Refuse."""
        _read_only(uri)

    def delete(self, uri: str) -> None:
        """Refuse."""
        _read_only(uri)

    def answers(self, uri: str) -> bool:
        """Say yes: who may read a web address is written in the address."""
        return True

    def _ask(self, method: str, uri: str, headers: dict[str, str], limit: int | None) -> _Reply:
        """Ask until a server answers; 5xx, 408, 429 and lost connections are tried again."""
        began = time.monotonic()
        trouble: Exception | int = 0
        for attempt in range(self._options.retries + 1):
            if attempt:
                time.sleep(random.uniform(0.5, 1) * min(0.1 * 2**attempt, 15))
            try:
                reply: _Reply = sync(self._web.loop, self._request, method, uri, headers, limit)
            except aiohttp.InvalidURL:
                raise Unreadable(f"{redact(uri)} is no address") from None
            except _TRANSIENT as error:
                trouble = error
                if _no_such_host(error):
                    raise Unreadable(f"{redact(uri)}: there is no such host") from None
                continue
            if reply.status < 500 and reply.status not in (408, 429):
                self._note(uri)
                return _checked(reply, uri)
            trouble = reply.status
        raise self._trouble(uri, trouble, began)

    async def _request(self, method: str, uri: str, headers: dict[str, str], limit: int | None) -> _Reply:
        session = await self._web.set_session()
        wanted = {"Accept-Encoding": "identity", **headers}
        async with session.request(
            method, self._web.encode_url(uri), headers=wanted, allow_redirects=True
        ) as answer:
            size = int(answer.headers.get("Content-Length", -1))
            body = b""
            if answer.status < 300 and method == "GET":
                body = await _body(answer, size, limit)
            return _Reply(answer.status, answer.headers.get("ETag"), size, body)

    def _note(self, uri: str) -> None:
        self._served[urlsplit(uri).netloc] = time.monotonic()

    def _trouble(self, uri: str, trouble: Exception | int, began: float) -> Exception:
        """Decide whether one address or one host is at fault, or all of the web that this process can see."""
        host = urlsplit(uri).netloc
        served = dict(self._served)
        elsewhere = any(at > began for other, at in served.items() if other != host)
        said = f"HTTP {trouble}" if isinstance(trouble, int) else type(trouble).__name__
        if elsewhere or (trouble not in _BUSY and served.get(host, 0) > began):
            return Unreadable(f"{redact(uri)}: {said}, while others were served")
        return EnvironmentFault(
            f"{redact(uri)}: the server does not answer ({said})",
            f"check the network and {host.rpartition('@')[2]}, then give the same command",
        )


async def _body(answer: Any, size: int, limit: int | None) -> bytes:
    """Read a body in chunks, so that one without an end is given up at the limit."""
    parts, total = [], 0
    if limit is not None and size > limit:
        raise TooLarge(f"{size:,} bytes, at most {limit:,} are read")
    async for chunk in answer.content.iter_chunked(_CHUNK):
        parts.append(chunk)
        total += len(chunk)
        if limit is not None and total > limit:
            raise TooLarge(f"more than {limit:,} bytes")
    return b"".join(parts)


def _checked(reply: _Reply, uri: str) -> _Reply:
    shown = redact(uri)
    if reply.status in (404, 410):
        raise NotFound(f"{shown} does not exist (HTTP {reply.status})")
    if reply.status in (401, 402, 403, 407, 451):
        raise Forbidden(f"{shown}: HTTP {reply.status}")
    if reply.status >= 300:
        raise Unreadable(f"{shown}: HTTP {reply.status}")
    return reply


def _no_such_host(error: Exception) -> bool:
    inner = getattr(error, "os_error", error)
    return isinstance(inner, socket.gaierror) and inner.errno == socket.EAI_NONAME


def _read_only(uri: str) -> NoReturn:
    raise UserError(f"nothing can be written to {redact(uri)}\n  what to do: give a folder or a bucket")
