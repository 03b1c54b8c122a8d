"""What every request passes before an application sees it: whose it is, how many there are, how large it is.

A body that is too large is refused by its length before any of it is read; one without a length, as soon as
what was read of it is too much. What a client still sends after that is thrown away, for a while: where a
connection is closed at once, many clients never see why.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cnnbatch.humanize import byte_size
from cnnbatch.index.serving.rate_limit import RateLimit
from cnnbatch.index.serving.token import Token, is_loopback

OPEN = frozenset({"/", "/page.js", "/page.css", "/docs", "/openapi.json", "/healthz"})
"""What says nothing of the index, and needs no token."""
PICTURE_COST = 0.1
BODY_S = 30.0
"""How long a client may send nothing of a body."""
DRAIN_S, DRAIN_BYTES = 10.0, 256 << 20
_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a request may be, how many bytes all that are under way, and how often a client may ask."""

    request_bytes: int = 20_000_000
    held_bytes: int = 64_000_000
    per_second: float = 10.0


class Gate:
    """Refuses requests that ``app`` is not to see."""

    def __init__(self, app: ASGIApp, limits: Limits, token: Token | None) -> None:
        self._app, self._limits, self._token = app, limits, token
        self._rates = RateLimit(limits.per_second)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on; see the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._stranger(scope, headers) or self._too_large(headers)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
            return
        wanted = self._largest(headers)
        if wanted and self._held + wanted > self._limits.held_bytes:
            await _refuse(_busy(), scope, receive, send)
            return
        self._held += wanted
        try:
            await self._app(scope, self._counted(receive), send)
        finally:
            self._held -= wanted

    def _stranger(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        """Return the answer to a client that asks too often, without the token, or by another name."""
        path = scope["path"]
        if path in OPEN:
            return None
        cost = PICTURE_COST if path == "/picture" else 1.0
        if wait_s := self._rates.wait_s((scope.get("client") or ("",))[0], cost):
            seconds = math.ceil(wait_s)
            detail = f"expected at most {self._limits.per_second:g} requests a second of one client, got more"
            return _answer(
                429, f"{detail}\n  what to do: ask again in {seconds} s", {"retry-after": str(seconds)}
            )
        if self._token is None:
            return None if is_loopback(_host(headers)) else _answer(421, _OTHER_NAME)
        if not self._token.opens(headers.get("authorization", "")):
            return _answer(401, _NO_TOKEN, {"www-authenticate": "Bearer"})
        return None

    def _too_large(self, headers: Headers) -> JSONResponse | None:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > _DIGITS:
            return _answer(400, "expected the length of the body in its header Content-Length")
        return _answer(413, self._large(int(length))) if int(length) > self._limits.request_bytes else None

    def _largest(self, headers: Headers) -> int:
        """Return how many bytes the body of a request may have; 0: it has none."""
        if "transfer-encoding" in headers:
            return self._limits.request_bytes
        return int(headers.get("content-length", "0"))

    def _large(self, length: int, more: str = "") -> str:
        return (
            f"expected a request of at most {byte_size(self._limits.request_bytes)}, got {more}"
            f"{byte_size(length)}\n  what to do: send fewer photos, or smaller ones"
        )

    def _counted(self, receive: Receive) -> Receive:
        """Return ``receive``, which raises HTTPException for a body that turns out too large, or too slow."""
        total, is_whole = 0, False

        async def counted() -> Message:
            nonlocal total, is_whole
            if is_whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), BODY_S)
            except TimeoutError:
                raise HTTPException(408, f"expected more of the body within {BODY_S:g} s") from None
            total += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if total > self._limits.request_bytes:
                raise HTTPException(413, self._large(total, "more than "), {"connection": "close"})
            return message

        return counted


_NO_TOKEN = (
    "expected the header Authorization: Bearer TOKEN with the token of this server\n"
    "  what to do: ask who runs it for the token"
)
_OTHER_NAME = (
    "expected this server to be asked by a name of this machine, as 127.0.0.1 or localhost\n"
    "  what to do: ask by that name; to be asked by others it needs --host and a token"
)


async def _refuse(refusal: JSONResponse, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer, and throw away what the client still sends of its body before the answer ends."""
    refusal.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": refusal.status_code, "headers": refusal.raw_headers})
    await send({"type": "http.response.body", "body": bytes(refusal.body), "more_body": True})
    try:
        async with asyncio.timeout(DRAIN_S):
            await _drain(receive)
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    total, message = 0, await receive()
    while message.get("more_body", False) and total < DRAIN_BYTES:
        total += len(message["body"])
        message = await receive()


def _busy() -> JSONResponse:
    words = "as many bytes of photos are under way as this server holds\n  what to do: ask again in 1 s"
    return _answer(503, words, {"retry-after": "1"})


def _answer(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


def _host(headers: Headers) -> str:
    """Return the name by which a client asks, without the port."""
    host = headers.get("host", "")
    return host.partition("]")[0].strip("[") if host.startswith("[") else host.rpartition(":")[0] or host
