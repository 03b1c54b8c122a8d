"""Which part of an address is a name and which a pattern: what exists as it is written is a name."""

from __future__ import annotations

import os

from cnnbatch.errors import UserError
from cnnbatch.sources.files import globs
from cnnbatch.storage import Forbidden, NotFound, Storage, Unreadable, is_local, scheme


def split(address: str, storage: Storage | None) -> tuple[str, str | None]:
    """Return what an address names, and the pattern below it; None where it is no pattern.

    A segment with ``*``, ``?`` or ``[`` in it is a pattern, as is all behind it, unless there is a file or
    folder of that very name; without a ``storage`` nobody asks whether there is. Addresses of the web are
    never patterns.
    """
    if scheme(address) in ("http", "https"):
        return address, None
    known = 0
    while (start := globs.first_wildcard(address, known)) is not None:
        end = address.find("/", start)
        end = len(address) if end < 0 else end
        if storage is None or not _exists(address[:end], storage):
            return globs.split(address, start)
        known = end
    return address, None


def is_pattern(address: str, storage: Storage) -> bool:
    """Say whether some of an address is a pattern."""
    return split(address, storage)[1] is not None


def _exists(address: str, storage: Storage) -> bool:
    """Say whether there is a file or a folder of this name."""
    if is_local(address):
        return os.path.lexists(address)
    try:
        return next(storage.list(address), None) is not None or _is_object(address, storage)
    except (NotFound, Unreadable, Forbidden, UserError):
        return _is_object(address, storage)


def _is_object(address: str, storage: Storage) -> bool:
    try:
        storage.head(address)
    except (NotFound, Unreadable, Forbidden, UserError):
        return False
    return True
