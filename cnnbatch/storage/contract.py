"""What every storage offers and how it fails; failures are of few kinds, so no caller reads texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pydantic import BaseModel, ConfigDict, Field

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.types import Span


class StorageOptions(BaseModel):
    """How to reach a storage; nothing secret, for jobs are written down and shared.

    ``timeout_s`` bounds one request (ten times that one that writes), ``retries`` counts the attempts after
    the first one. Between them are pauses of 0.1, 0.2, 0.4 … 15 s, each shortened at random by up to half;
    none begins later than five minutes, or ``timeout_s``, after the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    timeout_s: float = Field(default=60.0, gt=0)
    retries: int = Field(default=8, ge=0)


_PAGE = (b"<!doctype html", b"<html")


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its full address, its size in bytes, and a tag that changes with its content."""

    uri: str
    size: int
    etag: str | None


class NotFound(Exception):
    """The address names nothing."""


class NoSuchPlace(NotFound):
    """The bucket itself is not there."""


class Forbidden(Exception):
    """This one object may not be read."""


class OutOfReach(Forbidden):
    """The list that names this address may not name it; see `cnnbatch.storage.reach`."""


class MissingPackage(UserError):
    """Addresses of this kind are read by a package that is not installed here."""


class NotInstalled(EnvironmentFault):
    """The package whose files an address names is not installed here."""


class NoAnswer(EnvironmentFault):
    """A place gives no answer that has given none before: is it the only one that does not?"""


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

    def answers(self, uri: str) -> bool | None:
        """Say whether the place that holds ``uri`` still serves; None where it has given nothing so far."""


def is_page(data: bytes) -> bool:
    """Say whether bytes are a web page: what a login or a captive portal answers instead of an image."""
    return data[:256].lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower().startswith(_PAGE)
