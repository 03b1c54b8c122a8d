"""Which Ray a run is to join, by RAY_ADDRESS, and whether one answers there: known before Ray is asked.

Ray's own client waits for minutes at an address where nothing is, and ends in its own errors.
"""

from __future__ import annotations

import os
import re
import socket

from cnnbatch.errors import EnvironmentFault, UserError

VARIABLE = "RAY_ADDRESS"
ANSWER_S = 5.0
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]@]+):(\d{1,5})")
# RFC 9113, section 3.4: what a client of HTTP/2, which gRPC is, begins with, here with empty SETTINGS. A
# server answers with SETTINGS, a frame of type 4, whose header is three bytes of length and one of type.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
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
            speaks = os.environ.get("RAY_USE_TLS", "0") not in ("", "0", "false") or _speaks_grpc(connection)
    except socket.gaierror:
        raise EnvironmentFault(f"{VARIABLE}={address}: there is no host {host}", _MEND) from None
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise EnvironmentFault(f"{VARIABLE}={address}: no Ray cluster answers there ({why})", _MEND) from None
    if not speaks:
        raise EnvironmentFault(f"{VARIABLE}={address}: what answers there is not a Ray head node", _MEND)


def _speaks_grpc(connection: socket.socket) -> bool:
    try:
        connection.sendall(_PREFACE)
        answer = connection.recv(9, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(answer) == 9 and answer[3] == _SETTINGS
