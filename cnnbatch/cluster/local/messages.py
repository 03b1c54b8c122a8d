"""What passes over the socket between a driver and its fork server: JSON, a file descriptor beside it."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

_LENGTH = struct.Struct("!I")


def send(control: socket.socket, message: Mapping[str, Any], descriptor: int | None = None) -> None:
    """Send one message; raises OSError where the other side is gone."""
    body = json.dumps(message).encode()
    head = _LENGTH.pack(len(body))
    if descriptor is None:
        control.sendall(head + body)
    else:
        socket.send_fds(control, [head], [descriptor])
        control.sendall(body)


def receive(control: socket.socket) -> tuple[dict[str, Any], int | None] | None:
    """Return the next message with its descriptor; None where the other side is gone."""
    head, descriptors, *_ = socket.recv_fds(control, _LENGTH.size, 1)
    head += _exactly(control, _LENGTH.size - len(head)) if head else b""
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = _exactly(control, length)
    if len(body) < length:
        return None
    return json.loads(body), descriptors[0] if descriptors else None


def _exactly(control: socket.socket, length: int) -> bytes:
    body = b""
    while len(body) < length and (more := control.recv(length - len(body))):
        body += more
    return body
