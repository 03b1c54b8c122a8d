"""Reads whole image files and decides whose fault a failure is: the image's (a row) or the environment's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.storage import (
    Forbidden,
    MissingPackage,
    NoAnswer,
    NoSuchPlace,
    NotFound,
    NotInstalled,
    OutOfReach,
    Storage,
    TooLarge,
    Unreadable,
    is_local,
    is_page,
    parent,
    place,
    redact,
    scheme,
)
from cnnbatch.types import Failure, ImageRef, Shard, Span

MAX_BYTES = 512 << 20
"""More bytes than this are not read for one image."""

_WEB = ("http", "https")
_HERE = ("", "file", "local", "package", "memory")  # says nothing of the network
_PROBES = 8  # other images of the shard that are asked for before credentials are blamed
_PROBES_OF_HOSTS = 4  # before the network is: each may take as long as a host takes that does not answer


def readers(
    storage: Storage, shard: Shard, root: str | None, listed: bool = False
) -> Iterator[Callable[[], bytes | Failure]]:
    """Give one reader a ref.

    ``root`` is the local folder that all images lie in, where there is one; ``listed``: a list has named each
    of them, so that what only its address needs, such as a package that is not installed, is its own fault.
    """
    for ref in shard.refs:
        yield partial(read, storage, ref, shard, root, listed)


def read(
    storage: Storage, ref: ImageRef, shard: Shard, root: str | None, listed: bool = False
) -> bytes | Failure:
    """Return an image's bytes, or the failure that is its own; raises `EnvironmentFault` for any other."""
    try:
        data = storage.read(ref.uri, ref.at if isinstance(ref.at, Span) else None, MAX_BYTES)
    except NotFound as error:
        _require_place(storage, ref, root, error)
        return Failure("read", "not_found", str(error))
    except Forbidden as error:
        if not isinstance(error, OutOfReach) and not _served(storage, ref, shard):
            raise _refused(ref, error) from None
        return Failure("read", "forbidden", str(error))
    except TooLarge as error:
        return Failure("read", "too_large", str(error))
    except (NoAnswer, NotInstalled, MissingPackage) as error:
        return _unanswered(storage, ref, shard, listed, error)
    except (Unreadable, UserError) as error:
        return Failure("read", "unreadable", _first_line(error))
    if scheme(ref.uri) in _WEB and is_page(data) and storage.answers(ref.uri) is False:
        raise _a_page(ref)
    return data


def _require_place(storage: Storage, ref: ImageRef, root: str | None, error: NotFound) -> None:
    """Raise `EnvironmentFault` where not one image is missing, but its folder or bucket."""
    if isinstance(error, NoSuchPlace) and (ref.etag is not None or storage.answers(ref.uri) is not None):
        raise _gone(ref) from None
    if is_local(ref.uri) and ref.etag is not None and (folder := _missing(ref.uri, root)):
        raise _not_here(folder) from None


def _unanswered(
    storage: Storage,
    ref: ImageRef,
    shard: Shard,
    listed: bool,
    error: NoAnswer | NotInstalled | MissingPackage,
) -> Failure:
    """Return the failure of an image whose place, or what it is read by, is not there; raise any other's."""
    if isinstance(error, MissingPackage):
        if ref.etag is not None:  # the machine that listed it has the package
            raise EnvironmentFault(_first_line(error), f"install it on {os.uname().nodename}, too") from None
        return Failure("read", "unreadable", _first_line(error))
    if isinstance(error, NotInstalled):
        if not listed:
            raise error
        return Failure("read", "unreadable", error.what)
    beside = (uri for uri in _others(ref, shard, place(ref.uri)) if scheme(uri) not in _HERE)
    others = islice(beside, _PROBES_OF_HOSTS)
    if not (storage.others_answer(ref.uri) or any(_readable(storage, uri) for uri in others)):
        raise error
    return Failure("read", "unreadable", f"{error.what}, while others are served")


def _first_line(error: Exception) -> str:
    """Return what is wrong, without what to do about it in a job."""
    return str(error).partition("\n")[0]


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
    """Say whether the place that refuses this image gives others now: then the refusal is the image's own."""
    answers = storage.answers(ref.uri)
    if answers is not None:
        return answers
    if scheme(ref.uri) in _WEB:  # who may read a web address is mostly written in the address
        others = list(_others(ref, shard))
        return len(others) < _PROBES or not all(_is_forbidden(storage, uri) for uri in others)
    own = place(ref.uri)  # another bucket has rights of its own
    same = [other.uri for other in shard.refs if other.uri != ref.uri and place(other.uri) == own]
    return any(_readable(storage, uri) for uri in chain(_spread(same), _siblings(storage, ref.uri)))


def _others(ref: ImageRef, shard: Shard, beside: str | None = None) -> Iterator[str]:
    """Yield a few of the shard's other images, of as many hosts as can be, and none of ``beside``."""
    places = {place(other.uri): other.uri for other in shard.refs if other.uri != ref.uri}
    places.pop(beside or "", None)
    more = [other.uri for other in shard.refs if place(other.uri) != beside and other.uri != ref.uri]
    return islice(dict.fromkeys([*_spread(list(places.values())), *_spread(more)]), _PROBES)


def _spread(uris: list[str]) -> list[str]:
    return uris[:: max(1, len(uris) // _PROBES)][:_PROBES]


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
    except (NotFound, Forbidden, Unreadable, UserError, EnvironmentFault):
        return False
    return True


def _is_forbidden(storage: Storage, uri: str) -> bool:
    try:
        storage.head(uri)
    except Forbidden:
        return True
    except (NotFound, Unreadable, UserError, EnvironmentFault):
        pass
    return False


def _gone(ref: ImageRef) -> EnvironmentFault:
    return EnvironmentFault(
        f"{redact(ref.uri)}: its bucket, which was there before, is not there now",
        "check the endpoint and the bucket's name",
    )


def _a_page(ref: ImageRef) -> EnvironmentFault:
    return EnvironmentFault(
        f"{redact(ref.uri)} and what was read from that host before are web pages now",
        "check whether the network or the host wants a login",
    )


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
