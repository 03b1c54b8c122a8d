"""Looks whether any of the first images is there, so that a list of wrong addresses is no run of failures."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.sources.reading import MAX_BYTES
from cnnbatch.storage import Forbidden, NotFound, Storage, TooLarge, Unreadable, redact
from cnnbatch.types import ImageRef

FIRST = 1000
"""So many images are not there before it is said; a shorter input has a row for each."""
_AT_ONCE = 16


def some_are_there(refs: Iterator[ImageRef], storage: Storage, where: str) -> Iterator[ImageRef]:
    """Yield ``refs``, once one of the first `FIRST` is there: commonly one request, for the first.

    ``where`` names the input. Raises UserError where all of them are `NotFound`.
    """
    looked: list[ImageRef] = []
    with ThreadPoolExecutor(_AT_ONCE, "looking") as pool:
        while some := list(islice(refs, min(_AT_ONCE if looked else 1, FIRST - len(looked)))):
            looked += some
            if any(pool.map(lambda ref: _is_there(ref, storage), some)):
                break
    if len(looked) == FIRST and not some and not _is_read(looked[0], storage):
        raise UserError(
            f"none of the first {FIRST:,} images of {where} is there; the first one was looked for at "
            f"{redact(looked[0].uri)}\n"
            "  what to do: correct the addresses (relative ones begin at the folder of their list), or give "
            "max_failed=1, which writes a row for each of them all the same"
        )
    yield from chain(looked, refs)


def _is_there(ref: ImageRef, storage: Storage) -> bool:
    """Say whether an image's address names an object; of one in a container the listing has said so."""
    if ref.at is not None:
        return True
    try:
        storage.head(ref.uri)
    except NotFound:
        return False
    except (Forbidden, Unreadable, UserError, EnvironmentFault):
        return True
    return True


def _is_read(ref: ImageRef, storage: Storage) -> bool:
    """Say the same by reading, as the run does: a server may know GET alone."""
    try:
        storage.read(ref.uri, limit=MAX_BYTES)
    except NotFound:
        return False
    except (Forbidden, Unreadable, TooLarge, UserError, EnvironmentFault):
        return True
    return True
