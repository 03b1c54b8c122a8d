"""What every storage offers and how it fails; failures are of few kinds, so no caller reads texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pydantic import BaseModel, ConfigDict, Field

from cnnbatch.records import Span


class StorageOptions(BaseModel):
    """How to reach a storage; nothing secret, for jobs are written down and shared.

    ``timeout_s`` bounds one request, ``retries`` counts the attempts after the first one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    timeout_s: float = Field(default=60.0, gt=0)
    retries: int = Field(default=8, ge=0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its full address, its size in bytes, and a tag that changes with its content."""

    uri: str
    size: int
    etag: str | None


class NotFound(Exception):
    """The address names nothing."""


class Forbidden(Exception):
    """This one object may not be read."""


class Unreadable(Exception):
    """The address answers with an error of its own, or names something that is not an object."""


class TooLarge(Exception):
    """The object has more bytes than the caller takes."""


class AlreadyExists(Exception):
    """`create` found an object in its place; perhaps one's own, whose answer was lost."""


class Changed(Exception):
    """`replace` found another object than the one that was read."""


class Backend(Protocol):
    """One kind of storage; the methods mean what those of `cnnbatch.storage.Storage` mean."""

    def list(self, uri: str, after: str | None) -> Iterator[Entry]:
        """Yield the objects below ``uri``, ascending."""

    def read(self, uri: str, span: Span | None, limit: int | None) -> bytes:
        """Return the bytes of an object, or of its span."""

    def head(self, uri: str) -> Entry:
        """Return size and etag."""

    def open(self, uri: str) -> BinaryIO:
        """Open an object for reading at any place."""

    def create(self, uri: str, data: bytes | Path) -> str:
        """Write a new object, whole; return its etag."""

    def replace(self, uri: str, data: bytes | Path, etag: str) -> str:
        """Write an object whole over the one with ``etag``; return the new etag."""

    def put(self, uri: str, data: bytes | Path) -> None:
        """Write an object whole, over whatever is there."""

    def delete(self, uri: str) -> None:
        """Remove an object; an absent one is fine."""

    def answers(self, uri: str) -> bool:
        """Say whether the place that holds ``uri`` is known to serve this process."""
