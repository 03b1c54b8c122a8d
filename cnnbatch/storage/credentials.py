"""AWS credentials where obstore does not look, the shared file; and a quick no where there are none."""

from __future__ import annotations

import configparser
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cnnbatch.errors import EnvironmentFault
from cnnbatch.storage.faults import LOGIN

if TYPE_CHECKING:
    from obstore.store import S3Credential

_KNOWN_TO_OBSTORE = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
    "AWS_METADATA_ENDPOINT",
)
_METADATA = ("169.254.169.254", 80)
_METADATA_S = 1.0  # a link-local address answers in milliseconds or never
_ASKED = 2
_REWRITING, _REWRITING_S = 5, 0.2  # how often to look, should a tool be writing the file just now
_REREAD = timedelta(minutes=10)  # tools that rotate keys write them into the file again


def aws_credentials(root: str) -> Callable[[], S3Credential] | None:
    """Return a provider that reads the shared credentials file, or None where obstore finds them by itself.

    Raises `EnvironmentFault` at once where there are none at all.
    """
    if any(os.environ.get(name) for name in _KNOWN_TO_OBSTORE):
        return None
    if _shared() is not None:
        return _provide
    if not any(_has_role() for _ in range(_ASKED)):
        raise EnvironmentFault(f"{root}: no credentials were found", LOGIN["s3"])
    return None


def _has_role() -> bool:
    """Say whether the service answers from which a machine in a cloud has the keys of its role."""
    try:
        socket.create_connection(_METADATA, _METADATA_S).close()
    except OSError:
        return False
    return True


def _provide() -> S3Credential:
    keys = _shared()
    for _ in range(_REWRITING):
        if keys is None:
            time.sleep(_REWRITING_S)
            keys = _shared()
    keys = keys or {}
    return {
        "access_key_id": keys.get("aws_access_key_id", ""),
        "secret_access_key": keys.get("aws_secret_access_key", ""),
        "token": keys.get("aws_session_token"),
        "expires_at": datetime.now(UTC) + _REREAD,
    }


def _shared() -> dict[str, str] | None:
    """Return the keys of the profile in use, if the shared file holds any."""
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials"
    parser = configparser.RawConfigParser()
    parser.read(path)
    profile = os.environ.get("AWS_PROFILE", "default")
    keys = dict(parser[profile]) if parser.has_section(profile) else {}
    return keys if "aws_access_key_id" in keys else None
