"""Which Ray a run is to join, by RAY_ADDRESS, and whether one answers there: known before Ray is asked.

Ray's own client waits for minutes at an address where nothing is, and ends in its own errors.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator

from cnnbatch.errors import EnvironmentFault, UserError

VARIABLE = "RAY_ADDRESS"
ANSWER_S = 5.0
LONGEST_FRAME = 2**14
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]@]+):(\d{1,5})")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_SERVING = b"\x08\x01"
_MEND = f"start Ray there, correct {VARIABLE}, or unset it: then a Ray on this machine is joined or started"


def chosen() -> str:
    """Return what RAY_ADDRESS asks for: ``auto`` (also where it is empty), ``local``, or HOST:PORT.

    Raises UserError for anything else.
    """
    value = os.environ.get(VARIABLE, "").strip() or "auto"
    if value in ("auto", "local"):
        return value
    found = _HOST_AND_PORT.fullmatch(value)
    if found and 0 < int(found[2]) < 2**16:
        return value
    hint = ""
    if value.startswith("ray://"):
        hint = (
            "Ray Client (ray://) isn't supported: run on a machine of the cluster, e.g. by `ray job submit`; "
        )
    raise UserError(
        f"{VARIABLE}: expected auto, local, or HOST:PORT of a Ray head, as in 10.0.0.5:6379, got {value!r}\n"
        f"  what to do: {hint}correct it, or unset it: then a Ray on this machine is joined or started"
    )


def require_answer(address: str) -> None:
    """Raise EnvironmentFault where nothing answers at HOST:PORT within seconds, or what does is no Ray."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S) as connection:
            is_ray = os.environ.get("RAY_USE_TLS", "0") not in ("", "0", "false") or _is_healthy(connection)
    except socket.gaierror:
        raise EnvironmentFault(f"{VARIABLE}={address}: there is no host {host}", _MEND) from None
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise EnvironmentFault(f"{VARIABLE}={address}: no Ray cluster answers there ({why})", _MEND) from None
    if not is_ray:
        raise EnvironmentFault(f"{VARIABLE}={address}: what answers there is not a Ray head node", _MEND)


def _is_healthy(connection: socket.socket) -> bool:
    """Ask gRPC's health service, which Ray's head has, and say whether it answers SERVING.

    The few frames of HTTP/2 (RFC 9113, sections 3.4 and 4.1; header fields as literals, RFC 7541, section
    6.2.2) that github.com/grpc/grpc/blob/master/doc/health-checking.md takes: a gRPC client of Ray's own
    would wait for minutes where something else answers.
    """
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": "ray",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    headers = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    question = _frame(_HEADERS, _END_HEADERS, 1, headers) + _frame(_DATA, _END_STREAM, 1, bytes(5))
    try:
        connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + question)
        for kind, flags, body in _frames(connection):
            if kind == _DATA and body:
                return body.endswith(_SERVING)
            if kind in (_RESET, _GOAWAY) or (kind == _HEADERS and flags & _END_STREAM):
                return False
    except OSError:
        pass
    return False


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _frames(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Yield kind, flags and body of each frame; ends at what is no frame of a small answer."""
    ends = time.monotonic() + ANSWER_S
    while time.monotonic() < ends:
        head = connection.recv(9, socket.MSG_WAITALL)
        length = int.from_bytes(head[:3], "big")
        if len(head) < 9 or length > LONGEST_FRAME:
            return
        yield head[3], head[4], connection.recv(length, socket.MSG_WAITALL) if length else b""
