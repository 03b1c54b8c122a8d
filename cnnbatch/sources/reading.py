"""Reads whole image files and decides whose fault a failure is: the image's (a row) or the environment's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.records import Failure, ImageRef, Shard, Span
from cnnbatch.storage import Forbidden, NotFound, Storage, TooLarge, Unreadable, is_local, parent, redact

MAX_BYTES = 512 << 20
"""More bytes than this are not read for one image."""

_PROBES = 8  # other images of the shard that are asked for before credentials are blamed


def readers(storage: Storage, shard: Shard, root: str | None) -> Iterator[Callable[[], bytes | Failure]]:
    """Give one reader a ref; ``root`` is the local folder that all images lie in, where there is one."""
    for ref in shard.refs:
        yield partial(read, storage, ref, shard, root)


def read(storage: Storage, ref: ImageRef, shard: Shard, root: str | None) -> bytes | Failure:
    """Return an image's bytes, or the failure that is its own; raises `EnvironmentFault` for any other."""
    try:
        return storage.read(ref.uri, ref.at if isinstance(ref.at, Span) else None, MAX_BYTES)
    except NotFound as error:
        if is_local(ref.uri) and ref.etag is not None and (folder := _missing(ref.uri, root)):
            raise _not_here(folder) from None
        return Failure("read", "not_found", str(error))
    except Forbidden as error:
        if not _served(storage, ref, shard):
            raise _refused(ref, error) from None
        return Failure("read", "forbidden", str(error))
    except TooLarge as error:
        return Failure("read", "too_large", str(error))
    except (Unreadable, UserError) as error:
        return Failure("read", "unreadable", str(error))


def _missing(uri: str, root: str | None) -> str | None:
    """Return the folder that this host lacks, when it lacks more than one image that was listed.

    That is the root, missing or empty as a mount point is before the mount; without a root, the first
    folder of the path.
    """
    folder = root or os.path.dirname(uri)
    while root is None and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or _is_empty(folder):
        return folder
    return os.path.dirname(uri) if folder == "/" != os.path.dirname(uri) else None


def _is_empty(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return not any(entries)
    except OSError:
        return False


def _served(storage: Storage, ref: ImageRef, shard: Shard) -> bool:
    """Say whether the place that refuses this image gives others: then the refusal is the image's own."""
    if storage.answers(ref.uri):
        return True
    place = ref.uri.split("/")[:3]  # scheme and bucket: another bucket has rights of its own
    others = [other.uri for other in shard.refs if other.uri != ref.uri and other.uri.split("/")[:3] == place]
    spread = others[:: max(1, len(others) // _PROBES)][:_PROBES]
    return any(_readable(storage, uri) for uri in chain(spread, _siblings(storage, ref.uri)))


def _siblings(storage: Storage, uri: str) -> Iterator[str]:
    """Yield a few other objects of the same folder: a shard tried again may hold refused ones only."""
    try:
        for entry in islice(storage.list(parent(uri)), _PROBES):
            if entry.uri != uri:
                yield entry.uri
    except (NotFound, Forbidden, Unreadable, UserError):
        return


def _readable(storage: Storage, uri: str) -> bool:
    try:
        storage.head(uri)
    except (NotFound, Forbidden, Unreadable, UserError):
        return False
    return True


def _not_here(folder: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the input folder {folder} is missing or empty on {os.uname().nodename}",
        "mount it under the same path on every machine, or give the input as a bucket's address",
    )


def _refused(ref: ImageRef, error: Forbidden) -> EnvironmentFault:
    local = (
        "the rights on the folder"
        if is_local(ref.uri)
        else "the credentials' rights to read, input.storage.requester_pays"
    )
    return EnvironmentFault(
        f"{redact(ref.uri)} and the images beside it are refused: {error}", f"check {local}"
    )
