"""Finds what comes twice in a stream of any length, in a few megabytes and 24 bytes of disk an item."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np

from cnnbatch.errors import EnvironmentFault

_PARTITIONS = 256  # by the first byte of the digest
_BUFFER = 24 * 512  # bytes of one partition kept in memory before they are spooled
_NAMED = 5  # groups, and keys of each, that are named
_EARLY = 1 << 17  # keys that are compared at once, so that most mistakes show before any work is done
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<i8")])


class Digests:
    """Digests of 128 bits with their places; equal ones share a partition, and each is sorted by itself.

    Among 10^12 of them the odds of a false alarm are below 10^-14.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffers = [bytearray() for _ in range(_PARTITIONS)]

    def note(self, digest: bytes, place: int) -> None:
        """Note a digest of 16 bytes."""
        buffer = self._buffers[digest[0]]
        buffer += digest + place.to_bytes(8, "little")
        if len(buffer) >= _BUFFER:
            self._spool(digest[0])

    def groups(self) -> Iterator[np.ndarray]:
        """Yield the ascending places of every digest that came more than once."""
        for number in range(_PARTITIONS):
            records, twice = _compared(self._records(number))
            edges = np.concatenate(([0], np.flatnonzero(~twice) + 1, [len(records)]))
            for group in np.flatnonzero(np.diff(edges) > 1):
                yield records["place"][edges[group] : edges[group + 1]]

    def _spool(self, number: int) -> None:
        with _spooling(self._folder), self._path(number).open("ab") as file:
            file.write(self._buffers[number])
        self._buffers[number].clear()

    def _records(self, number: int) -> np.ndarray:
        path = self._path(number)
        return np.frombuffer((path.read_bytes() if path.exists() else b"") + self._buffers[number], _RECORD)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:03d}"


class Keys(Digests):
    """Keys with their places, compared by their digests."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._early: dict[bytes, int] = {}

    def add(self, key: str, place: int) -> tuple[int, int] | None:
        """Note a key; return both places if it is known at once to have come before."""
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self._early:
            return self._early[digest], place
        if len(self._early) < _EARLY:
            self._early[digest] = place
        self.note(digest, place)
        return None

    def duplicate(self) -> tuple[int, int] | None:
        """Return the places of the first key that came twice."""
        found = [pair for number in range(_PARTITIONS) if (pair := _first(self._records(number)))]
        return min(found, key=lambda pair: pair[1], default=None)


@contextmanager
def unique_keys() -> Iterator[Keys]:
    """Give an empty set of keys, on a temporary folder that goes at the end."""
    with TemporaryDirectory(prefix="cnnbatch-keys-") as folder:
        yield Keys(Path(folder))


@dataclass(frozen=True, slots=True)
class Copies:
    """Images equal to another: ``images`` of them could go, and one of each of ``groups`` would stay.

    ``examples`` are the keys of the first few groups, a few of each.
    """

    images: int = 0
    groups: int = 0
    examples: tuple[tuple[str, ...], ...] = ()


class Contents:
    """Digests of contents, and in the file ``keys`` the keys of their images."""

    def __init__(self, folder: Path, keys: BinaryIO) -> None:
        self._folder = folder
        self._keys = keys
        self._digests = Digests(folder)

    def add(self, key: str, digest: bytes) -> None:
        """Note the digest of an image, of 16 bytes."""
        with _spooling(self._folder):
            self._digests.note(digest, self._keys.tell())
            self._keys.write(json.dumps(key).encode() + b"\n")

    def copies(self) -> Copies:
        """Return how many images equal another that was noted before them."""
        images, groups = 0, 0
        first: list[list[int]] = []
        for places in self._digests.groups():
            images, groups = images + len(places) - 1, groups + 1
            first = sorted([*first, places[:_NAMED].tolist()])[:_NAMED]
        return Copies(images, groups, tuple(tuple(map(self._key, places)) for places in first))

    def _key(self, place: int) -> str:
        self._keys.seek(place)
        return str(json.loads(self._keys.readline()))


@contextmanager
def contents() -> Iterator[Contents]:
    """Give an empty set of contents, on a temporary folder that goes at the end."""
    with TemporaryDirectory(prefix="cnnbatch-contents-") as folder, Path(folder, "keys").open("w+b") as keys:
        yield Contents(Path(folder), keys)


@contextmanager
def _spooling(folder: Path) -> Iterator[None]:
    """Tell what the disk refuses as the `EnvironmentFault` that it is."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{folder}: {error.strerror}, while what comes twice was looked for there",
            "free space on that disk, or set TMPDIR to another one",
        ) from None


def _compared(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the records [N] in order, and whether each has the digest of the next [N - 1]."""
    records = records[np.lexsort((records["place"], records["low"], records["high"]))]
    one, two = records[:-1], records[1:]
    return records, (one["high"] == two["high"]) & (one["low"] == two["low"])


def _first(records: np.ndarray) -> tuple[int, int] | None:
    """Return the places of the two equal digests whose second place comes first."""
    records, same = _compared(records)
    twice = np.flatnonzero(same) + 1
    if not len(twice):
        return None
    best = twice[np.argmin(records["place"][twice])]
    return int(records["place"][best - 1]), int(records["place"][best])
