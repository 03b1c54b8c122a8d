"""Which Ray a run is to join, and whether one answers there: known before Ray is asked, or imported.

Ray's own client waits for minutes at an address where nothing is, and ends in its own errors.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from cnnbatch.errors import EnvironmentFault, UserError

VARIABLE = "RAY_ADDRESS"
ANSWER_S = 5.0
LONGEST_FRAME = 2**14
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]@]+):(\d{1,5})")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_SERVING = bytes([0, 0, 0, 0, 2, 8, 1])  # A message of two bytes: its field 1 has the value 1.
_MEND = f"start Ray there, correct {VARIABLE}, or set it to local to run on this machine"


def cluster_address() -> str | None:
    """Return HOST:PORT of the Ray cluster that a run is to join; None where it has this machine alone.

    RAY_ADDRESS says which; where it doesn't, it is the Ray of which this machine is a node. A Ray that
    another program started for itself, by `ray.init()`, is none of them: its CPUs are taken, and it ends
    with that program. Raises UserError for a RAY_ADDRESS that is none, EnvironmentFault where no Ray
    answers at the one that it names.
    """
    address = chosen()
    if address == "auto":
        return next((found for found in _on_this_machine() if _answers(found)), None)
    if address == "local":
        return None
    require_answer(address)
    return address


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
        f"  what to do: {hint}correct it, or set it to local to run on this machine"
    )


def require_answer(address: str, found: bool = False) -> None:
    """Raise EnvironmentFault where nothing answers at HOST:PORT within seconds, or what does is no Ray.

    Also where it wants a token and none will be sent; ``found`` says that no person named the address.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except socket.gaierror:
        raise EnvironmentFault(f"{VARIABLE}={address}: there is no host {host}", _MEND) from None
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise EnvironmentFault(f"{VARIABLE}={address}: no Ray cluster answers there ({why})", _MEND) from None
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0", "false"):
        return  # What is asked below is not encrypted.
    place = (host.strip("[]"), int(port))
    if _SERVING not in _asked(place, "/grpc.health.v1.Health/Check"):
        raise EnvironmentFault(f"{VARIABLE}={address}: what answers there is not a Ray head node", _MEND)
    wants_token = b"InvalidAuthToken" in _asked(place, "/ray.rpc.NodeInfoGcsService/CheckAlive")
    if wants_token and not _sends_token(found):
        raise EnvironmentFault(
            f"{VARIABLE}={address}: this Ray cluster wants a token",
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token",
        )


def _answers(address: str) -> bool:
    try:
        require_answer(address, found=True)
    except (EnvironmentFault, ValueError):  # Left over from a Ray that has ended, or damaged.
        return False
    return True


def _on_this_machine() -> list[str]:
    """Return the addresses of the Ray clusters that this machine may be a node of, the likeliest first.

    As `ray._private.services.canonicalize_bootstrap_address("auto")` finds them: by the file that `ray start`
    writes, and by the command lines of the raylets; but for those that a program started for itself.
    """
    noted, found = _noted(), []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "raylet":
            with suppress(psutil.Error):  # It has ended since, or is not ours to look at.
                address = _option(process, "--gcs-address")
                if address == noted or not _is_private(process):
                    found.append(address)
    found.sort(key=lambda address: address != noted)
    return [address for address in dict.fromkeys([*found, noted]) if address]


def _noted() -> str:
    """Return the address that the latest `ray start` on this machine wrote down; nothing where none did."""
    folder = os.environ.get("RAY_TMPDIR")
    if folder is None:
        folder = os.environ.get("TMPDIR", "/tmp") if sys.platform.startswith("linux") else "/tmp"
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    except (OSError, ValueError):
        return ""


def _is_private(raylet: psutil.Process) -> bool:
    """Say whether a program that still runs started this node for itself, by `ray.init()`.

    A session's name ends in the id of the process that began it.
    """
    parent = raylet.parent()
    began = parent is not None and _option(raylet, "--session-name").endswith(f"_{parent.pid}")
    return began and "start" not in parent.cmdline()  # `ray start --block` stays, too.


def _option(process: psutil.Process, name: str) -> str:
    """Return the value of an option as in ``--name=value`` of a command line; nothing where it has none."""
    values = (word.partition("=")[2] for word in process.cmdline() if word.startswith(f"{name}="))
    return next(values, "")


def _sends_token(found: bool) -> bool:
    """Say whether Ray's client sends its token: to a Ray that was found also where no variable says so.

    After `ray._private.authentication.authentication_token_setup`.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None or not found:
        return (mode or "").lower() == "token"
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or os.path.isfile(os.path.expanduser("~/.ray/auth_token"))


def _asked(place: tuple[str, int], path: str) -> bytes:
    """Return what a gRPC method answers to an empty message, headers and all; nothing from what is no gRPC.

    The few frames of HTTP/2 (RFC 9113, sections 3.4 and 4.1; header fields as literals, RFC 7541, section
    6.2.2) that a call takes, such as that of
    github.com/grpc/grpc/blob/master/doc/health-checking.md: Ray's own client would wait for minutes where
    something else answers.
    """
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "ray",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    headers = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    question = _frame(_HEADERS, _END_HEADERS, 1, headers) + _frame(_DATA, _END_STREAM, 1, bytes(5))
    answer = b""
    try:
        with socket.create_connection(place, ANSWER_S) as connection:
            connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + question)
            for kind, flags, body in _frames(connection):
                if kind in (_DATA, _HEADERS):
                    answer += body
                if kind in (_RESET, _GOAWAY) or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                    break
    except OSError:
        pass
    return answer


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
