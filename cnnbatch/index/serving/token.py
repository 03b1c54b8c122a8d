"""The bearer token that clients have to send: read from a file or the environment, and never shown."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from cnnbatch.errors import UserError

VARIABLE = "CNNBATCH_TOKEN"
SHORTEST = 16
_MAKE_ONE = "python -c 'import secrets; print(secrets.token_urlsafe(32))' > token; chmod 600 token"


@dataclass(frozen=True, slots=True)
class Token:
    """A token by its digest, so that neither a log nor an error shows it."""

    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, text: str, source: str) -> Token:
        """Return the token ``text``; raises UserError for one that can be guessed, or be no header."""
        if len(text) < SHORTEST or not text.isascii() or not text.isprintable() or " " in text:
            raise UserError(
                f"{source}: expected a token of at least {SHORTEST} printable ASCII characters without "
                f"blanks, got {len(text)} characters\n  what to do: make one by {_MAKE_ONE}"
            )
        return cls(_digest(text))

    def opens(self, header: str) -> bool:
        """Say whether an Authorization header has this token, in a time that does not tell how nearly."""
        scheme, _, given = header.partition(" ")
        return hmac.compare_digest(_digest(given.strip()), self.digest) and scheme.lower() == "bearer"


def required_token(
    host: str, file: str | None, environment: MutableMapping[str, str] = os.environ
) -> Token | None:
    """Return the token of a file, else of CNNBATCH_TOKEN, which is taken out of the environment of children.

    Raises UserError where there is none and ``host`` is not this machine alone.
    """
    found = environment.pop(VARIABLE, None)
    if file is not None:
        return Token.of(_read(file), f"--token-file {file}")
    if found is not None:
        return Token.of(found.strip(), VARIABLE)
    if is_loopback(host):
        return None
    raise UserError(
        f"--host {host}: expected a token, since others than this machine could ask; found none\n"
        f"  what to do: give --token-file FILE, or set {VARIABLE}; make one by {_MAKE_ONE}"
    )


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(
            f"--token-file {file}: it can't be read: {why}\n  what to do: make it by {_MAKE_ONE}"
        ) from None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
