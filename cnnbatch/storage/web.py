"""Single files over http(s), through fsspec's session; one host of many may be gone, and the web is up."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import aiohttp
import fsspec
import yarl
from aiohttp.helpers import get_env_proxy_for_url
from fsspec.asyn import sync

from cnnbatch.errors import UserError
from cnnbatch.storage.address import place, redact
from cnnbatch.storage.contract import (
    Entry,
    Forbidden,
    NoAnswer,
    NotFound,
    OutOfReach,
    StorageOptions,
    TooLarge,
    Unreadable,
    is_page,
)
from cnnbatch.storage.ranges import range_file
from cnnbatch.storage.reach import Reach, is_public, origin
from cnnbatch.storage.retrying import attempts
from cnnbatch.storage.serving import Serving
from cnnbatch.types import Span

_CHUNK = 1 << 16  # bytes
_BUSY = (429, 503)
_BROKEN = (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, OSError)
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
_MOST_HOSTS = 1000


@dataclass(frozen=True, slots=True)
class _Reply:
    """One answer: HTTP ``status``, headers, and the body as far as it was wanted."""

    status: int
    etag: str | None
    size: int
    body: bytes


@dataclass
class _Hop:
    """One request on its way: to which address, and which machines it was not let go to."""

    uri: str
    by_proxy: bool
    refused: list[str] = field(default_factory=list)


_hop: ContextVar[_Hop | None] = ContextVar("hop", default=None)


class Web:
    """Files of web servers, read only; with a `Reach` only those that lie within it, redirects included."""

    def __init__(self, options: StorageOptions, reach: Reach | None = None) -> None:
        self._options = options
        self._reach = reach
        timeout = aiohttp.ClientTimeout(total=options.timeout_s, connect=min(10.0, options.timeout_s))
        self._web = fsspec.filesystem(
            "https",
            skip_instance_cache=True,
            get_client=self._client,
            client_kwargs={"timeout": timeout, "trust_env": True},
        )
        self.serving = Serving(self._is_readable)
        self._private: OrderedDict[str, bool] = OrderedDict()
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
        if reply.body and not is_page(reply.body):
            self.serving.note(place(uri), uri)
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

    def answers(self, uri: str) -> bool | None:
        """Say whether the host gives what it gave before; if it never gave anything, whether others do."""
        still = self.serving.still(place(uri))
        return self.serving.elsewhere(place(uri)) if still is None else still

    def is_private(self, uri: str) -> bool:
        """Say whether the host of an address that was read was never reached at a public machine."""
        with self._lock:
            return self._private.get(origin(uri), False)

    def _ask(self, method: str, uri: str, headers: dict[str, str], limit: int | None) -> _Reply:
        """Ask until a server answers; 5xx, 408, 429 and lost connections are tried again."""
        trouble: Exception | int = 0
        for _ in attempts(self._options):
            try:
                reply: _Reply = sync(self._web.loop, self._request, method, uri, headers, limit)
            except _BROKEN as error:
                trouble = error
                if _no_such_host(error):
                    break
                continue
            if reply.status < 500 and reply.status not in (408, 429):
                return _checked(reply, uri)
            trouble = reply.status
        raise self._trouble(uri, trouble)

    async def _request(self, method: str, uri: str, headers: dict[str, str], limit: int | None) -> _Reply:
        """Make one request, and those that its redirects ask for, each of them within the reach."""
        session = await self._web.set_session()
        url = _parsed(uri)
        for _ in range(_MOST_REDIRECTS):
            hop = _Hop(str(url), by_proxy=_has_proxy(url))
            _hop.set(hop)  # for the sockets that are made for this request
            try:
                await self._check_before_proxy(hop, url)
                async with session.request(
                    method,
                    url,
                    headers={"Accept-Encoding": "identity", **headers},
                    allow_redirects=False,
                ) as answer:
                    target = answer.headers.get("Location")
                    if answer.status not in _REDIRECTS or target is None:
                        return await _reply(answer, method, limit)
                    url = _redirected(url, target, uri)
            except ValueError:  # a host that IDNA does not know, or aiohttp's own InvalidURL
                raise UserError(_no_address(uri)) from None
            except OSError:
                if hop.refused and self._reach:
                    raise OutOfReach(self._reach.refusal_to_connect(uri)) from None
                raise
        raise Unreadable(f"{redact(uri)}: more than {_MOST_REDIRECTS} redirects")

    async def _check_before_proxy(self, hop: _Hop, url: yarl.URL) -> None:
        """Refuse what this machine would find in a private network: what a proxy finds is not known."""
        if not (self._reach and hop.by_proxy):
            return
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(url.host or "", url.port, type=socket.SOCK_STREAM)
        except OSError:
            return
        if not all(self._reach.lets_connect(hop.uri, str(one[4][0])) for one in found):
            raise OutOfReach(self._reach.refusal_to_connect(hop.uri))

    async def _client(self, **options: Any) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(socket_factory=self._socket)
        return aiohttp.ClientSession(connector=connector, **options)

    def _socket(self, found: Any) -> socket.socket:
        """Make the socket of a connection, to a machine that is known by now."""
        family, kind, protocol, _, (address, *_) = found
        hop = _hop.get()
        if hop is not None and not hop.by_proxy:
            self._note_machine(hop.uri, address)
            if self._reach is not None and not self._reach.lets_connect(hop.uri, address):
                hop.refused.append(address)
                raise OSError("out of reach")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    def _note_machine(self, uri: str, address: str) -> None:
        with self._lock:
            host = origin(uri)
            self._private[host] = self._private.get(host, True) and not is_public(address)
            self._private.move_to_end(host)
            if len(self._private) > _MOST_HOSTS:
                self._private.popitem(last=False)

    def _is_readable(self, uri: str) -> bool:
        """Say whether a file is still given, and no web page in its place."""
        for _ in attempts(self._options):
            try:
                reply: _Reply = sync(
                    self._web.loop, self._request, "GET", uri, {"Range": f"bytes=0-{_CHUNK}"}, None
                )
            except _BROKEN:
                continue
            except (Forbidden, TooLarge, Unreadable, UserError):
                return False
            if reply.status < 500 and reply.status not in (408, 429):
                return reply.status < 300 and not is_page(reply.body)
        return False

    def _trouble(self, uri: str, trouble: Exception | int) -> Exception:
        """Decide whether one address or one host is at fault, or all of the web that this process can see."""
        host = place(uri)
        said = f"HTTP {trouble}" if isinstance(trouble, int) else type(trouble).__name__
        if isinstance(trouble, Exception) and _no_such_host(trouble):
            said = "there is no such host"
        if (trouble not in _BUSY and self.serving.still(host)) or self.serving.elsewhere(host):
            return Unreadable(f"{redact(uri)}: {said}, while others are served")
        return NoAnswer(
            f"{redact(uri)}: the server does not answer ({said})",
            f"check the network and {host.partition('://')[2]}, then give the same command",
        )


# Forbidden in a host by the URL standard, but taken by yarl: asked for, it would seem a host that is down.
_NO_HOST = re.compile(r"[\x00-\x20\x7f\"<>\\^`{|}]")


def _parsed(uri: str) -> yarl.URL:
    try:
        url = yarl.URL(uri)
        if url.host and url.port and not _NO_HOST.search(url.host):
            return url
    except ValueError:
        pass
    raise UserError(_no_address(uri))


def _no_address(uri: str) -> str:
    return f"{redact(uri)} is no address\n  what to do: give one such as https://host/a.jpg"


def _redirected(url: yarl.URL, target: str, uri: str) -> yarl.URL:
    try:
        found = url.join(yarl.URL(target))
    except ValueError:
        raise Unreadable(f"{redact(uri)}: a redirect to what is no address") from None
    if found.scheme not in ("http", "https") or not found.host:
        raise Unreadable(f"{redact(uri)}: a redirect to what is no web address")
    return found


def _has_proxy(url: yarl.URL) -> bool:
    try:
        get_env_proxy_for_url(url)
    except LookupError:
        return False
    return True


async def _reply(answer: aiohttp.ClientResponse, method: str, limit: int | None) -> _Reply:
    claimed = answer.headers.get("Content-Length", "")
    size = int(claimed) if claimed.isascii() and claimed.isdigit() else -1
    body = b""
    if answer.status < 300 and method == "GET":
        body = await _body(answer, size, limit)
    return _Reply(answer.status, answer.headers.get("ETag"), size, body)


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
